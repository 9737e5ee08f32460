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

from gpu_turn import Lane, clear_turn

from qm9study.training import Settings, Training

#: Seconds of a training's process besides those of training, until there are measured ones.
OVERHEAD = 60.0
#: Lines of a failed training's log that are shown.
TAIL = 5
#: Seconds that a process gets to end by itself.
GRACE = 10.0


@dataclass
class Running:
    """A process and what it trains.

    Attributes
    ----------
    turn : float, optional
        When it began to have its GPU; None while it prepares itself or waits.
    """

    training: Training
    job: Path
    process: subprocess.Popen[bytes]
    turn: float | None

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
    ahead : bool
        Start the next process on a GPU while one trains there; it waits for its turn.
    """

    def __init__(
        self,
        settings: Settings,
        script: Path,
        gpus: Iterable[int | None],
        deadline: float,
        overhead: float = OVERHEAD,
        ahead: bool = False,
    ) -> None:
        self.settings, self.script = settings, script
        locks = Path(settings.out).resolve() / "turns"
        self.lanes = [
            Lane(gpu, locks / f"{_name(gpu)}-{share}.lock" if ahead else None)
            for share in range(settings.per_gpu)
            for gpu in gpus
        ]
        self.deadline = deadline
        self.overhead = overhead
        #: Seconds of a turn besides those of training, as far as measured.
        self.beside: float | None = None

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
        failed: list[Training] = []
        left: list[Training] = []
        for lane in self.lanes:
            if lane.lock is not None:
                clear_turn(lane.lock)
        try:
            while waiting or any(lane.running for lane in self.lanes):
                self._begin(waiting, left)
                time.sleep(0.1)
                for lane in self.lanes:
                    lane.look()
                    for one in [one for one in lane.running if one.process.poll() is not None]:
                        lane.running.remove(one)
                        self._end(one, finished, failed, left)
                if time.perf_counter() > self.deadline:
                    running = [one for lane in self.lanes for one in lane.running]
                    for one in running:
                        print(f"== {one.training.name}: out of time, ended", flush=True)
                    left += [one.training for one in running] + waiting
                    return failed, left
            return failed, left
        finally:
            for lane in self.lanes:
                # Who waits first, or it would get its turn.
                while lane.running:
                    lane.running.pop().stop()

    def _begin(self, waiting: list[Training], left: list[Training]) -> None:
        """Start, in their order, as many as there are places, each where it will end first."""
        while waiting and (places := [lane for lane in self.lanes if lane.is_open]):
            training = waiting.pop(0)
            lane = min(places, key=lambda lane: self._end_of(training, lane))
            if self._end_of(training, lane) < self.deadline:
                lane.running.append(self._start(training, lane))
            else:
                print(f"== {training.name}: left for later", flush=True)
                left.append(training)

    def _length(self, training: Training) -> float:
        """Seconds that it trains in this call."""
        pause = self.settings.pause_after
        return training.seconds if pause is None else min(training.seconds, pause)

    def _end_of(self, training: Training, lane: Lane) -> float:
        """When a training that is started now in a lane will have ended."""
        length = self._length(training)
        alone = time.perf_counter() + length + self.overhead
        if not lane.running:
            return alone
        front, beside = lane.running[0], self.overhead if self.beside is None else self.beside
        return max(alone, front.turn + self._length(front.training) + length + 2 * beside)

    def _start(self, training: Training, lane: Lane) -> Running:
        folder = Path(self.settings.out) / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        job = folder / f"{training.name}.json"
        job.with_suffix(".result").unlink(missing_ok=True)
        content = {"training": asdict(training), "settings": asdict(self.settings)}
        content["turn"] = None if lane.lock is None else str(lane.lock)
        job.write_text(json.dumps(content))
        words = [sys.executable, str(self.script), "--out", self.settings.out, "--worker", str(job)]
        gpu = lane.gpu
        place = "" if gpu is None else f" on GPU {gpu}"
        wait = f", after {lane.running[0].training.name}" if lane.running else ""
        print(f"== {training.name}{place}{wait}", flush=True)
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
        turn = time.perf_counter() if lane.lock is None else None
        return Running(training, job, process, turn)

    def _end(
        self,
        one: Running,
        finished: Callable[[Training, dict[str, Any]], None],
        failed: list[Training],
        left: list[Training],
    ) -> None:
        result = one.result()
        if result is not None and one.turn is not None:
            # Less than nothing where most was trained in an earlier call.
            beside = max(time.perf_counter() - one.turn - self._length(one.training), 0.0)
            self.beside = max(self.beside or 0.0, beside)
            self.overhead = max(self.overhead, beside)
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
            finished(one.training, result)


def _name(gpu: int | None) -> str:
    """A GPU's name in those of files."""
    return "cpu" if gpu is None else f"gpu{gpu}"
