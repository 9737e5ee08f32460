"""Several trainings at a time, each process doing many in turn, until a deadline."""

from __future__ import annotations

import multiprocessing
import os
import queue
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

#: What a worker sends when it has nothing more to do.
_DONE = "done"


def run_all(
    work: Callable[[Any], Any],
    items: Sequence[Any],
    jobs: int,
    deadline: float,
    logs: str | Path,
) -> Iterator[tuple[Any, Any, str | None]]:
    """Apply ``work`` to every item in fresh processes and yield results as they come.

    A process does not begin an item that would, by the longest of its kind so far, not end in
    time; at the deadline the processes are ended.

    Parameters
    ----------
    work : callable
        A function that can be pickled (``functools.partial`` of a module's function).
    items : sequence
        In order of importance; items with an attribute ``model`` are timed by it.
    jobs : int
        Processes; 0 works in this one, which then does not stop in the midst of an item.
    deadline : float
        In seconds of ``time.time()``.
    logs : path
        Folder for what the processes print.

    Yields
    ------
    item, result, error
        ``error`` is None, or the traceback of an item that failed (its result is None).
    """
    if not items:
        return
    if jobs == 0:
        for item in items:
            if time.time() < deadline:
                yield (item, work(item), None)
        return
    Path(logs).mkdir(parents=True, exist_ok=True)
    # Fresh interpreters: a fork of one that has started threads or CUDA is not safe.
    context = multiprocessing.get_context("spawn")
    waiting, finished = context.Queue(), context.Queue()
    for item in items:
        waiting.put(item)
    processes = [
        context.Process(
            target=_worker, args=(work, waiting, finished, deadline, str(Path(logs) / f"{n}.log"))
        )
        for n in range(min(jobs, len(items)))
    ]
    for process in processes:
        process.start()
    active = len(processes)
    try:
        while active:
            try:
                message = finished.get(timeout=1.0)
            except queue.Empty:
                if time.time() > deadline or not any(p.is_alive() for p in processes):
                    return
                continue
            if message == _DONE:
                active -= 1
            else:
                yield message
    finally:
        for process in processes:
            if active:
                process.kill()
            process.join()


def _worker(
    work: Callable[[Any], Any], waiting: Any, finished: Any, deadline: float, log: str
) -> None:
    stream = open(log, "a", buffering=1)  # noqa: SIM115 - it replaces the process's output
    os.dup2(stream.fileno(), sys.stdout.fileno())
    os.dup2(stream.fileno(), sys.stderr.fileno())
    longest: dict[str, float] = {}
    while True:
        try:
            item = waiting.get(timeout=1.0)
        except queue.Empty:
            break
        kind = getattr(item, "model", "")
        started = time.time()
        if started + longest.get(kind, max(longest.values(), default=0.0)) > deadline:
            continue
        try:
            finished.put((item, work(item), None))
        except Exception:
            finished.put((item, None, traceback.format_exc()))
        longest[kind] = max(longest.get(kind, 0.0), time.time() - started)
    finished.put(_DONE)
