"""Trainings in turn, one process a GPU, until a deadline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from s2efpeers.training import Settings, Training

#: Lines of a failed training's log that are kept.
TAIL = 12


@dataclass
class Running:
    """A training that has a GPU."""

    training: Training
    process: subprocess.Popen
    job: Path


@dataclass(frozen=True)
class Outcome:
    """How a training ended: with a result, or with the end of its log."""

    training: Training
    result: dict[str, Any] | None
    error: str = ""


class GpuQueue:
    """Runs trainings in processes of their own.

    Parameters
    ----------
    script : path
        Called as ``script --out OUT --worker JOB``; it leaves ``JOB.result`` beside the job file.
    settings : Settings
    devices : sequence of str
        Values of ``CUDA_VISIBLE_DEVICES``; an empty string leaves it alone.
    deadline : float
        In seconds of ``time.time()``: whatever runs then is ended, and is not a failure.
    """

    def __init__(
        self, script: Path, settings: Settings, devices: Sequence[str], deadline: float
    ) -> None:
        self.script = script
        self.settings = settings
        self.free = list(devices)
        self.deadline = deadline
        self.running: dict[str, Running] = {}
        #: Trainings that the deadline ended.
        self.cut: list[Training] = []

    def run(self, take: Callable[[float], Training | None]) -> Iterator[Outcome]:
        """Yield outcomes as they come.

        Parameters
        ----------
        take : callable
            Next training that takes no more than so many seconds, or None if there is none now;
            asked again whenever something has ended.
        """
        try:
            while True:
                while self.free and (left := self.deadline - time.time()) > 0:
                    training = take(left)
                    if training is None:
                        break
                    self._start(training, self.free.pop(0))
                if not self.running:
                    return
                yield from self._ended()
                if time.time() > self.deadline:
                    self._end_all()
                    return
                time.sleep(0.2)
        finally:
            self._end_all()

    def _start(self, training: Training, device: str) -> None:
        folder = Path(self.settings.out) / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        job = folder / f"{training.name}.json"
        job.with_suffix(".result").unlink(missing_ok=True)
        job.write_text(
            json.dumps({"training": asdict(training), "settings": asdict(self.settings)})
        )
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", "1")
        if device:
            environment["CUDA_VISIBLE_DEVICES"] = device
        command = [sys.executable, str(self.script), "--out", self.settings.out, "--worker"]
        with job.with_suffix(".log").open("w") as log:
            process = subprocess.Popen(
                [*command, str(job)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # The loader's processes end with it.
                start_new_session=True,
            )
        self.running[device] = Running(training, process, job)

    def _ended(self) -> Iterator[Outcome]:
        for device, running in list(self.running.items()):
            code = running.process.poll()
            if code is None:
                continue
            del self.running[device]
            self.free.append(device)
            result = running.job.with_suffix(".result")
            if code == 0 and result.is_file():
                yield Outcome(running.training, json.loads(result.read_text()))
            else:
                log = running.job.with_suffix(".log").read_text(errors="replace")
                yield Outcome(running.training, None, "\n".join(log.splitlines()[-TAIL:]))

    def _end_all(self) -> None:
        for running in self.running.values():
            self.cut.append(running.training)
            _kill_group(running.process)
        self.running.clear()


def _kill_group(process: subprocess.Popen) -> None:
    import contextlib
    import signal

    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
