"""Worker processes, each with its device, that do one piece of work after the other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

#: Seconds between looks at the clock.
_POLL = 0.5


def run_all(
    work: Callable[[Any, str], Any],
    items: Sequence[Any],
    devices: Sequence[str],
    deadline: float,
    logs: Path,
) -> Iterator[tuple[Any, Any, str | None]]:
    """Apply ``work(item, device)`` to all items and yield results as they come.

    One process a device; with one CPU this very process does the work. A worker begins nothing
    that would, by the longest item so far, end after the deadline; at the deadline workers are
    ended. One that dies takes its item with it, and another takes its place.

    Parameters
    ----------
    work : callable
        Of a module, so that it can be pickled.
    items : sequence
        In order of importance.
    devices : sequence of str
        A device may stand more than once.
    deadline : float
        In seconds of ``time.time()``.
    logs : path
        Folder for what the processes print.

    Yields
    ------
    item, result, error
        ``error`` is None, or why the item failed (its result is None).
    """
    if not items:
        return
    if list(devices) == ["cpu"]:
        for item in items:
            if time.time() < deadline:
                yield _apply(work, item, "cpu")
        return
    logs.mkdir(parents=True, exist_ok=True)
    crew = _Crew(work, devices, logs)
    waiting = deque(items)
    longest = 0.0
    try:
        while True:
            for place in range(len(devices)):
                if waiting and crew.free(place) and time.time() + longest <= deadline:
                    crew.give(place, waiting.popleft())
            if not crew.busy:
                return
            for item, result, error, seconds in crew.results(_POLL):
                longest = max(longest, seconds)
                yield item, result, error
            if time.time() > deadline:
                return
    finally:
        crew.end()


class _Crew:
    """One process a device, each at one item or free."""

    def __init__(self, work: Callable[[Any, str], Any], devices: Sequence[str], logs: Path) -> None:
        # Fresh interpreters: a fork of one that has started threads or CUDA is not safe.
        self.context = multiprocessing.get_context("spawn")
        self.work, self.devices, self.logs = work, devices, logs
        self.processes: dict[int, Any] = {}
        self.ends: dict[int, Connection] = {}
        self.busy: dict[int, tuple[Any, float]] = {}

    def free(self, place: int) -> bool:
        """Whether a device has nothing to do."""
        return place not in self.busy

    def give(self, place: int, item: Any) -> None:
        """Let a device's process, started if need be, do an item."""
        if place not in self.processes:
            self.ends[place], other = self.context.Pipe()
            arguments = (self.work, self.devices[place], other, str(self.logs / f"{place}.log"))
            self.processes[place] = self.context.Process(target=_serve, args=arguments)
            self.processes[place].start()
            # The process alone holds it, so that its death closes the pipe.
            other.close()
        self.busy[place] = item, time.time()
        # A process that has died says so when its result is read.
        with contextlib.suppress(OSError):
            self.ends[place].send(item)

    def results(self, timeout: float) -> Iterator[tuple[Any, Any, str | None, float]]:
        """Items that ended, with result, error and seconds; waits for the first of them."""
        places = {self.ends[place]: place for place in self.busy}
        for end in wait(list(places), timeout):
            place = places[end]
            item, since = self.busy.pop(place)
            try:
                result, error, usable = end.recv()
            except (EOFError, OSError):
                process = self._drop(place)
                error = f"its process ended with code {process.exitcode}"
                result, usable = None, True
            if not usable:
                self._drop(place)
            yield item, result, error, time.time() - since

    def _drop(self, place: int) -> Any:
        self.ends.pop(place).close()
        process = self.processes.pop(place)
        process.join()
        return process

    def end(self) -> None:
        """End all processes, at work or not."""
        for process in self.processes.values():
            process.kill()
            process.join()


def _apply(work: Callable[[Any, str], Any], item: Any, device: str) -> tuple[Any, Any, str | None]:
    try:
        return item, work(item, device), None
    except Exception:
        return item, None, traceback.format_exc()


def _serve(work: Callable[[Any, str], Any], device: str, end: Connection, log: str) -> None:
    stream = open(log, "a", buffering=1)  # noqa: SIM115 - it replaces the process's output
    os.dup2(stream.fileno(), sys.stdout.fileno())
    os.dup2(stream.fileno(), sys.stderr.fileno())
    cuda = device.startswith("cuda")
    if cuda:
        import torch

        torch.cuda.set_device(device)
    usable = True
    while usable:
        _, result, error = _apply(work, end.recv(), device)
        if error and cuda:
            # After some errors a process can do nothing more on its GPU.
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                usable = False
        end.send((result, error, usable))
