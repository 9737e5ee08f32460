"""Turns on a GPU: a training's process prepares itself while another one still trains there."""

from __future__ import annotations

import fcntl
import os
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
        Lock file of the GPU; holds the number of the process that has the turn.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_start(self, state: Any, unit: Any) -> None:
        """Wait, and write down who has the turn."""
        # Never closed: that would end the turn.
        lock = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.lockf(lock, fcntl.LOCK_EX)
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
