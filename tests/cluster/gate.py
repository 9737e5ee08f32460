"""A callback that holds a training at a step, so that a test can act there and not race it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchtnt.framework.callback import Callback


class Gate(Callback):
    """Wait before some steps, each rank by itself, until a file lets it through.

    Parameters
    ----------
    folder : str
        Where ``waiting_N`` tells that N steps are done, and ``open_N`` lets the training go on.
    steps : sequence of int
        Numbers N.
    """

    def __init__(self, folder: str, steps: Sequence[int]) -> None:
        self.folder = Path(folder)
        self.steps = list(steps)

    def on_train_step_start(self, state: Any, unit: Any) -> None:
        """Wait if the gate of this step is not open; ten minutes at most."""
        step = unit.train_progress.num_steps_completed
        if step not in self.steps:
            return
        (self.folder / f"waiting_{step}").touch()
        end = time.monotonic() + 600
        while not (self.folder / f"open_{step}").exists():
            if time.monotonic() > end:
                raise TimeoutError(f"nobody opened the gate before step {step + 1}")
            time.sleep(0.05)
