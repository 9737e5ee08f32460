"""Report to the experiment logger now and then instead of at every step."""

from __future__ import annotations

from typing import Any

from torchtnt.framework.callback import Callback

from est_ocp.errors import ConfigError


class SparseLogger(Callback):
    """Let fairchem's unit see its logger at every so many training steps only.

    With a logger (Weights & Biases) the unit reads loss and gradient norm from the device at every
    step, and waits for its end before it prepares the next one. Between the steps that are
    reported it has none here; evaluations are reported as always.

    Parameters
    ----------
    every : int
        Steps between reports; 1 reports all of them, as fairchem does.

    Raises
    ------
    ConfigError
        If `every` is not positive.
    """

    def __init__(self, every: int = 10) -> None:
        if every < 1:
            raise ConfigError(
                f"runner.callbacks.sparse_logger.every must be 1 or more, got {every}"
            )
        self.every = every
        self._logger: Any = None

    def on_train_start(self, state: Any, unit: Any) -> None:
        """Keep the logger."""
        self._logger = unit.logger

    def on_train_step_start(self, state: Any, unit: Any) -> None:
        """Hide it from a step that is not reported."""
        if unit.train_progress.num_steps_completed % self.every:
            unit.logger = None

    def on_train_step_end(self, state: Any, unit: Any) -> None:
        """Give it back."""
        unit.logger = self._logger

    def on_exception(self, state: Any, unit: Any, exc: BaseException) -> None:
        """Give it back, if training had begun."""
        if self._logger is not None:
            unit.logger = self._logger
