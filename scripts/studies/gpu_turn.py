"""Turns on a GPU: a training's process prepares itself while another one still trains there."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchtnt.framework.callback import Callback


class GpuTurn(Callback):
    """Waits before the first training step until nobody else has the turn.

    Imports, data and model are there by then. The turn ends with the process, however that ends, so
    that evaluations after the training belong to it. It is a POSIX record lock, which belongs to
    this process alone: unlike that of ``flock`` it does not pass to forked workers of loaders,
    which may live longer.

    Parameters
    ----------
    path : str
        Lock file of the GPU; holds the number of the process that has the turn, and the seconds
        that it has waited.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_start(self, state: Any, unit: Any) -> None:
        """Wait, and write down who has the turn."""
        began = time.perf_counter()
        # Never closed: that would end the turn.
        lock = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.lockf(lock, fcntl.LOCK_EX)
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()} {time.perf_counter() - began:.3f}".encode())


def turn_overrides(lock: str | None) -> list[str]:
    """What lets a training wait for its turn, if a lock file is named."""
    if lock is None:
        return []
    name = "+runner.callbacks.turn"
    return [f"{name}._target_=gpu_turn.GpuTurn", f"{name}.path={lock}"]


def holder(lock: Path) -> str:
    """Number of the process that has, or last had, the turn; empty if nobody had it."""
    return lock.read_text().partition(" ")[0] if lock.is_file() else ""


def waited(lock: str | None) -> float:
    """Seconds that the process that has the turn has waited for it."""
    return 0.0 if lock is None else float(Path(lock).read_text().partition(" ")[2] or 0)


def clear_turn(lock: Path) -> None:
    """Make the file anew, so that no number of an earlier call is in it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text("")


@dataclass
class Lane:
    """A GPU, or one's share of it, where one trains at a time.

    Attributes
    ----------
    gpu : int or str, optional
        Its name; None, or empty, is the processor or any GPU.
    lock : Path, optional
        File of :class:`GpuTurn`; None if only one process at a time is there.
    clock : callable
        That a running one's ``turn`` is read from.
    running : list
        The one that trains, and one that waits for its end, each with a ``process`` and the time
        ``turn`` when it began to have its GPU, or None.
    """

    gpu: int | str | None
    lock: Path | None
    clock: Callable[[], float] = time.perf_counter
    running: list[Any] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """Whether a process can start: nobody is there, or the only one has its turn."""
        self.look()
        if self.lock is None or not self.running:
            return not self.running
        return len(self.running) == 1 and self.running[0].turn is not None

    def look(self) -> None:
        """Note whether the first one has its turn by now: its number is in the file then."""
        first = self.running[0] if self.running else None
        if first is None or first.turn is not None:
            return
        if holder(self.lock) == str(first.process.pid):
            first.turn = self.clock()
