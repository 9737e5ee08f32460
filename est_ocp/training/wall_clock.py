"""Trainings of a given time: the learning rate falls with the clock, and the clock ends them.

For comparisons of models at equal cost, where nobody knows beforehand how many steps fit.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from fairchem.core.common import distutils
from torch.optim.lr_scheduler import LambdaLR
from torchtnt.framework.callback import Callback

from est_ocp.errors import ConfigError
from est_ocp.training import metrics_file

logger = logging.getLogger(__name__)


class ClockCosine:
    """Factor of the learning rate: linear warm-up, then a cosine, both of the seconds trained.

    Parameters
    ----------
    seconds : float
        Length of the training.
    warmup : float
        Length of the warm-up as a fraction of it.
    warmup_factor, lr_min_factor : float
        Factor at the start, and at the end.
    untimed_steps : int
        First steps that do not count: memory is allocated, kernels are compiled and chosen.

    Attributes
    ----------
    trained : float
        Seconds trained.
    timed_steps : int
        Steps that they hold. Both are saved with the optimiser, so that a resumed training goes on.
    """

    def __init__(
        self,
        seconds: float,
        warmup: float,
        warmup_factor: float,
        lr_min_factor: float,
        untimed_steps: int,
    ) -> None:
        if not seconds > 0 or not 0 <= warmup < 1:
            raise ConfigError(
                "a schedule of time needs seconds > 0 and a warm-up of 0 to 1 of it, not "
                f"{seconds} and {warmup}"
            )
        self.seconds, self.warmup = seconds, warmup
        self.warmup_factor, self.lr_min_factor = warmup_factor, lr_min_factor
        self.untimed_steps = untimed_steps
        self.trained = 0.0
        self.timed_steps = 0

    @property
    def progress(self) -> float:
        """Fraction of the time that is over, up to 1."""
        return min(self.trained / self.seconds, 1.0)

    def __call__(self, step: int) -> float:
        if self.progress < self.warmup:
            share = self.progress / self.warmup
            return self.warmup_factor + (1 - self.warmup_factor) * share
        share = (self.progress - self.warmup) / (1 - self.warmup)
        return self.lr_min_factor + (1 - self.lr_min_factor) * 0.5 * (1 + math.cos(math.pi * share))


def wall_clock_schedule(
    seconds: float,
    warmup_factor: float,
    warmup_epochs: float,
    lr_min_factor: float,
    n_iters_per_epoch: int,
    optimizer: torch.optim.Optimizer,
    untimed_steps: int = 10,
    **lengths: Any,
) -> LambdaLR:
    """Schedule of a training that :class:`WallClockBudget` ends; replaces ``cosine_schedule``.

    Parameters
    ----------
    seconds : float
        Time of training; evaluations do not count.
    warmup_factor, lr_min_factor : float
        As for :func:`est_ocp.training.cosine_schedule`.
    warmup_epochs : float
        Length of the warm-up, here as a fraction of ``seconds``.
    n_iters_per_epoch : int
        Without effect.
    optimizer : Optimizer
    untimed_steps : int
        First steps that do not count.
    **lengths
        ``epochs`` and ``steps`` of the config, without effect.
    """
    factor = ClockCosine(seconds, warmup_epochs, warmup_factor, lr_min_factor, untimed_steps)
    return LambdaLR(optimizer, factor)


def clock_of(unit: Any) -> ClockCosine | None:
    """Return the clock of a unit's schedule, or None if its length is one of steps."""
    # All groups of parameters share this object.
    factor = getattr(unit.scheduler, "lr_lambdas", [None])[0]
    return factor if isinstance(factor, ClockCosine) else None


class _Due(int):
    """Stands for "every so many" steps or epochs, and asks a function instead of dividing."""

    def __new__(cls, due: Callable[[], bool]) -> _Due:
        self = super().__new__(cls, 1)
        self.due = due
        return self

    def __rmod__(self, _count: int) -> int:
        return 0 if self.due() else 1


class WallClockBudget(Callback):
    """Runs the clock of :func:`wall_clock_schedule` and ends the training when time is up.

    Each evaluation adds a row of kind ``clock`` to ``metrics.jsonl``: the ``trained`` seconds and
    the ``timed_steps`` that they hold, without evaluations and first steps.

    Parameters
    ----------
    job_config : DictConfig
        The job, for the place of the run.
    evaluations : int, optional
        Evaluate after so many equal shares of the time. None: at the end of each epoch, and every
        ``evaluate_every`` steps.
    pause_after : float, optional
        Seconds of training after which this start ends with a checkpoint; the same command goes
        on from there, schedule and clock too, until the schedule's time is up.

    Raises
    ------
    ConfigError
        At the start, if the schedule is another, or with several ranks, whose clocks differ.
    """

    def __init__(
        self, job_config: Any, evaluations: int | None = None, pause_after: float | None = None
    ) -> None:
        if evaluations is not None and evaluations < 1:
            raise ConfigError(f"evaluations must be at least 1, or null, not {evaluations}")
        if pause_after is not None and not pause_after > 0:
            raise ConfigError(f"pause_after must be positive, or null, not {pause_after}")
        self.pause_after = pause_after
        self.path = metrics_file.metrics_path(job_config)
        self.evaluations = evaluations
        self.started: float | None = None
        self.steps = self.evaluated = 0
        self.resumed_at = 0.0

    def on_train_start(self, state: Any, unit: Any) -> None:
        """Find the schedule's clock."""
        clock = clock_of(unit)
        if clock is None:
            raise ConfigError(
                "WallClockBudget needs the schedule est_ocp.training.wall_clock_schedule; use "
                "both (budget=wall_clock) or neither"
            )
        if distutils.get_world_size() > 1:
            raise ConfigError("a training of a given time runs on one GPU; set ranks_per_node: 1")
        self.clock = clock
        self.steps, self.started = 0, None
        if self.evaluations is not None:
            # The loop knows counts of steps and epochs only.
            state.eval_state._evaluate_every_n_steps = _Due(self._evaluation_is_due)
            state.eval_state._evaluate_every_n_epochs = _Due(self._evaluation_is_due)

    def on_train_step_start(self, state: Any, unit: Any) -> None:
        """Begin to count: all until the next evaluation, with loading and checkpoints."""
        if self.steps == 0:
            # A checkpoint is read by now.
            self.resumed_at, self.evaluated = self.clock.trained, self._shares()
        if self.started is None and self.steps >= self.clock.untimed_steps:
            self._wait()
            self.started = time.perf_counter()

    def on_train_step_end(self, state: Any, unit: Any) -> None:
        """Add the time; stop when it is up."""
        self.steps += 1
        self.clock.timed_steps += self.started is not None
        # Steps are queued ahead of the GPU; now and then the clock waits for it.
        self._count(wait=self.steps % 20 == 0)
        if self.clock.progress >= 1 or self._is_due_to_pause():
            what = "time is up" if self.clock.progress >= 1 else "to be continued"
            logger.info("%s: %.1f s of training", what, self.clock.trained)
            # As if so many steps had been asked for: after state.stop() the evaluation that follows
            # would see nothing.
            state.train_state._max_steps = unit.train_progress.num_steps_completed

    def on_eval_start(self, state: Any, unit: Any) -> None:
        """Hold the clock."""
        self._count(wait=True)
        self.started = None
        self.evaluated = self._shares()
        row = {"kind": "clock", "step": unit.train_progress.num_steps_completed}
        row |= {"trained": round(self.clock.trained, 3), "timed_steps": self.clock.timed_steps}
        metrics_file.append(self.path, row)

    def _is_due_to_pause(self) -> bool:
        trained = self.clock.trained - self.resumed_at
        return self.pause_after is not None and trained >= self.pause_after

    def _shares(self) -> int:
        """Shares of the time that are over."""
        return int(self.clock.progress * (self.evaluations or 0))

    def _evaluation_is_due(self) -> bool:
        return self._shares() > self.evaluated

    def _count(self, wait: bool) -> None:
        if self.started is None:
            return
        if wait:
            self._wait()
        now = time.perf_counter()
        self.clock.trained += now - self.started
        self.started = now

    @staticmethod
    def _wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
