"""Save and end before the time limit of a SLURM job, on all ranks at the same step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairchem.core.common import distutils
from torchtnt.framework.callback import Callback

from est_ocp.errors import ConfigError


class StoppedInTimeError(Exception):
    """The training was ended before the time limit; it is to be continued."""


class StopInTime(Callback):
    """Save a checkpoint and leave the training when little time is left.

    fairchem's own callback lets each rank look at its own clock, so that one may save a step later
    than the others, counts the epoch that was cut short as completed, and divides by zero in the
    evaluation that follows. Here rank 0 decides, and nothing follows.

    Parameters
    ----------
    seconds : float
        Time that the job has, from now on.
    save : callable, optional
        Saves a checkpoint in a folder; none if the run keeps no checkpoints.
    checkpoint_dir : str
        Where checkpoints go.
    check_every : int
        Steps between looks at the clock; each asks rank 0.
    """

    def __init__(
        self,
        seconds: float,
        save: Callable[[str], None] | None,
        checkpoint_dir: str,
        check_every: int = 10,
    ) -> None:
        if seconds <= 0:
            raise ConfigError(
                "runner.stop_before_timeout_min leaves no time; it must be less than the time "
                "limit, job.scheduler.slurm.timeout_hr"
            )
        self.save = save
        self.checkpoint_dir = checkpoint_dir
        self.check_every = check_every
        self.end = time.monotonic() + seconds

    def on_train_step_start(self, state: Any, unit: Any) -> None:
        """Look at the clock; the counts of steps and epochs are both right here."""
        step = unit.train_progress.num_steps_completed
        if step % self.check_every:
            return
        over = [time.monotonic() >= self.end]
        distutils.broadcast_object_list(over, 0)
        if over[0]:
            if self.save is not None:
                self.save(str(Path(self.checkpoint_dir) / f"step_{step}"))
            logging.warning(f"stopped at step {step}, before the time limit; to be continued")
            raise StoppedInTimeError
