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

from gpu_turn import Lane, clear_turn

from s2efpeers.training import Settings, Training

#: Lines of a failed training's log that are kept.
TAIL = 12


@dataclass
class Running:
    """A training's process.

    Attributes
    ----------
    turn : float, optional
        Since when, by ``time.time()``, it has its GPU; None while it waits.
    """

    training: Training
    process: subprocess.Popen
    job: Path
    turn: float | None


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
    ahead : bool
        Start the next process on a GPU while one trains there; it waits for its turn.
    """

    def __init__(
        self,
        script: Path,
        settings: Settings,
        devices: Sequence[str],
        deadline: float,
        ahead: bool = False,
    ) -> None:
        self.script = script
        self.settings = settings
        locks = Path(settings.out) / "turns"
        self.lanes = [
            Lane(device, locks / f"{device or 'any'}.lock" if ahead else None, time.time)
            for device in devices
        ]
        for lane in self.lanes:
            if lane.lock is not None:
                clear_turn(lane.lock)
        self.deadline = deadline
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
                for lane in self.lanes:
                    left = self.deadline - time.time()
                    if left > 0 and lane.is_open:
                        training = take(left - self._wait(lane))
                        if training is not None:
                            self._start(training, lane)
                if not any(lane.running for lane in self.lanes):
                    return
                yield from self._ended()
                if time.time() > self.deadline:
                    self._end_all()
                    return
                time.sleep(0.2)
        finally:
            self._end_all()

    def _wait(self, lane: Lane) -> float:
        """Seconds until the one that trains has trained; evaluations come on top."""
        if not lane.running:
            return 0.0
        first = lane.running[0]
        end = first.turn + self.settings.seconds_of(first.training.stage)
        return max(0.0, end - time.time())

    def _start(self, training: Training, lane: Lane) -> None:
        folder = Path(self.settings.out) / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        job = folder / f"{training.name}.json"
        job.with_suffix(".result").unlink(missing_ok=True)
        content = {"training": asdict(training), "settings": asdict(self.settings)}
        content["turn"] = None if lane.lock is None else str(lane.lock)
        job.write_text(json.dumps(content))
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", "1")
        if lane.gpu:
            environment["CUDA_VISIBLE_DEVICES"] = lane.gpu
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
        turn = time.time() if lane.lock is None else None
        lane.running.append(Running(training, process, job, turn))

    def _ended(self) -> Iterator[Outcome]:
        for lane in self.lanes:
            for running in list(lane.running):
                code = running.process.poll()
                if code is None:
                    continue
                lane.running.remove(running)
                result = running.job.with_suffix(".result")
                if code == 0 and result.is_file():
                    yield Outcome(running.training, json.loads(result.read_text()))
                else:
                    log = running.job.with_suffix(".log").read_text(errors="replace")
                    yield Outcome(running.training, None, "\n".join(log.splitlines()[-TAIL:]))

    def _end_all(self) -> None:
        for lane in self.lanes:
            # Who waits first, or it would get its turn.
            for running in reversed(lane.running):
                self.cut.append(running.training)
                _kill_group(running.process)
            lane.running.clear()


def _kill_group(process: subprocess.Popen) -> None:
    import contextlib
    import signal

    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
