"""Trainings as processes over several GPUs, within a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qm9study.training import Settings, Training

#: Seconds of a training's process besides those of training, until there are measured ones.
OVERHEAD = 60.0
#: Lines of a failed training's log that are shown.
TAIL = 5
#: Seconds that a process gets to end by itself.
GRACE = 10.0


@dataclass
class Running:
    """A process and what it trains."""

    training: Training
    job: Path
    gpu: int | None
    process: subprocess.Popen[bytes]
    started: float

    @property
    def log(self) -> Path:
        """What the process prints."""
        return self.job.with_suffix(".log")

    def result(self) -> dict[str, Any] | None:
        """Its result, None if it failed."""
        found = self.job.with_suffix(".result")
        return json.loads(found.read_text()) if self.process.returncode == 0 else None

    def stop(self) -> None:
        """End the process and its loaders."""
        for word, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
            if self.process.poll() is None:
                os.killpg(self.process.pid, word)
                try:
                    self.process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue


class Queue:
    """Run trainings one after the other on every GPU, or several at once on each.

    Parameters
    ----------
    settings : Settings
    script : Path
        Called with ``--out`` and ``--worker FILE``.
    gpus : sequence of int or None
        Numbers of the GPUs; None is the processor.
    deadline : float
        On the clock of :func:`time.perf_counter`. What would not end before is not begun, and what
        runs then is ended.
    overhead : float
        Seconds of a process besides those of training.
    """

    def __init__(
        self,
        settings: Settings,
        script: Path,
        gpus: Iterable[int | None],
        deadline: float,
        overhead: float = OVERHEAD,
    ) -> None:
        self.settings, self.script = settings, script
        self.slots = [gpu for _ in range(settings.per_gpu) for gpu in gpus]
        self.deadline = deadline
        self.overhead = overhead

    def run(
        self,
        trainings: Iterable[Training],
        finished: Callable[[Training, dict[str, Any]], None],
    ) -> tuple[list[Training], list[Training]]:
        """Run all that fit.

        Parameters
        ----------
        trainings : iterable of Training
            In the order of their begin.
        finished : callable
            Called with each training that is over, and its result.

        Returns
        -------
        failed, left : list of Training
            What failed, and what is left for a later call.
        """
        waiting = list(trainings)
        free, running = list(self.slots), []
        failed: list[Training] = []
        left: list[Training] = []
        try:
            while waiting or running:
                while waiting and free:
                    training = waiting.pop(0)
                    if self._fits(training):
                        running.append(self._start(training, free.pop(0)))
                    else:
                        print(f"== {training.name}: left for later", flush=True)
                        left.append(training)
                time.sleep(0.1)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    free.append(one.gpu)
                    self._end(one, finished, failed, left)
                if time.perf_counter() > self.deadline:
                    for one in running:
                        print(f"== {one.training.name}: out of time, ended", flush=True)
                    left += [one.training for one in running] + waiting
                    return failed, left
            return failed, left
        finally:
            for one in running:
                one.stop()

    def _fits(self, training: Training) -> bool:
        seconds = training.seconds
        if self.settings.pause_after is not None:
            seconds = min(seconds, self.settings.pause_after)
        return time.perf_counter() + seconds + self.overhead < self.deadline

    def _start(self, training: Training, gpu: int | None) -> Running:
        folder = Path(self.settings.out) / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        job = folder / f"{training.name}.json"
        job.with_suffix(".result").unlink(missing_ok=True)
        content = {"training": asdict(training), "settings": asdict(self.settings)}
        job.write_text(json.dumps(content))
        words = [sys.executable, str(self.script), "--out", self.settings.out, "--worker", str(job)]
        place = "" if gpu is None else f" on GPU {gpu}"
        print(f"== {training.name}{place}", flush=True)
        environment = dict(os.environ)
        if gpu is not None:
            visible = environment.get("CUDA_VISIBLE_DEVICES", "")
            names = visible.split(",") if visible else []
            environment["CUDA_VISIBLE_DEVICES"] = names[gpu] if names else str(gpu)
        with job.with_suffix(".log").open("ab") as log:
            process = subprocess.Popen(
                words,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return Running(training, job, gpu, process, time.perf_counter())

    def _end(
        self,
        one: Running,
        finished: Callable[[Training, dict[str, Any]], None],
        failed: list[Training],
        left: list[Training],
    ) -> None:
        result = one.result()
        if result is None:
            end = one.log.read_text(errors="replace").splitlines()[-TAIL:]
            print("\n".join([f"   {one.training.name} failed, see {one.log}", *end]), flush=True)
            failed.append(one.training)
        elif "paused" in result:
            print(
                f"   {one.training.name}: {result['paused']:.0f} s of {one.training.seconds:g} s "
                "trained, to be continued",
                flush=True,
            )
            left.append(one.training)
        else:
            spent = time.perf_counter() - one.started
            self.overhead = max(self.overhead, spent - one.training.seconds)
            finished(one.training, result)
