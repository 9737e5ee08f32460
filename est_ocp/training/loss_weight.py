"""A task's loss weight that changes in the course of a training."""

from __future__ import annotations

from typing import Any

from torchtnt.framework.callback import Callback

from est_ocp.errors import ConfigError


class LinearLossWeight(Callback):
    """Change the coefficient of a task's loss linearly from the first step to the last.

    It is a function of the step alone, so that a resumed training goes on with it.

    Parameters
    ----------
    task : str
        The task's name.
    start, end : float
        Coefficient at the first step and at the end.
    """

    def __init__(self, task: str, start: float, end: float) -> None:
        self.task, self.start, self.end = task, start, end

    def on_train_start(self, state: Any, unit: Any) -> None:
        """Find the task.

        Raises
        ------
        ConfigError
            If the run has no such task.
        """
        self._loss(unit)

    def on_train_step_start(self, state: Any, unit: Any) -> None:
        """Set the coefficient of this step."""
        steps = state.train_state.max_steps
        if steps is None:
            steps = state.train_state.max_epochs * len(state.train_state.dataloader)
        done = min(1.0, unit.train_progress.num_steps_completed / max(steps, 1))
        self._loss(unit).coefficient = self.start + (self.end - self.start) * done

    def _loss(self, unit: Any) -> Any:
        for task in unit.tasks:
            if task.name == self.task:
                return task.loss_fn
        names = ", ".join(task.name for task in unit.tasks)
        raise ConfigError(f"LinearLossWeight: there is no task '{self.task}' (there are {names})")
