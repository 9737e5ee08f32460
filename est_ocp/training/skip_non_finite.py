"""Leave out the steps of a training whose loss or gradient is not a number."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from fairchem.core.common import distutils
from torchtnt.framework.callback import Callback

from est_ocp.errors import DataError
from est_ocp.training import metrics_file
from est_ocp.training.non_finite import ADVICE, name_structures
from est_ocp.training.step_watcher import StepWatcher

logger = logging.getLogger(__name__)


class SkipNonFiniteSteps(Callback):
    """Leave out up to ``max_skipped`` steps whose loss or gradient is not finite, then stop.

    A step that is left out changes neither the weights, their average, nor the optimiser's
    moments; the learning rate's schedule and the count of steps go on. It is written to
    ``metrics.jsonl`` as a row of kind ``skipped`` with the structures' names, and logged.

    A loss that is not finite on one rank is made a gradient that is not, which the reduction
    over the ranks spreads, so that all ranks see the same norm and skip the same steps without
    asking each other. The norm is read before every step of the optimiser: the device is waited
    for once more than fairchem's losses already do (once a task and step). Where that counts,
    :class:`StopOnNonFiniteLoss` does not wait.

    Parameters
    ----------
    job_config : DictConfig
        The job, for the place of the run.
    max_skipped : int
        Steps that may be left out, counted from the start of the training or from its resume.

    Raises
    ------
    DataError
        In training, at one bad step more.
    """

    def __init__(self, job_config: Any, max_skipped: int = 10) -> None:
        self.path = metrics_file.metrics_path(job_config)
        self.max_skipped = max_skipped
        self.count = 0
        self.skipped = self.in_step = False
        self.watcher = StepWatcher()
        self._undo: list[Callable[[], None]] = []

    def on_train_start(self, state: Any, unit: Any) -> None:
        """Take the place of the optimiser's step and of the averaging."""
        self.watcher.attach(unit)
        for task in unit.tasks:
            self._undo.append(task.loss_fn.register_forward_hook(self._spread).remove)
        self._replace(unit.optimizer, "step", lambda: not self._is_bad(unit))
        if unit.ema_model is not None:
            self._replace(unit.ema_model, "update_parameters", lambda: not self.skipped)

    def on_train_step_start(self, state: Any, unit: Any) -> None:
        """Forget the step before."""
        self.in_step = self.skipped = False

    def on_train_step_end(self, state: Any, unit: Any) -> None:
        """Report a step that was left out."""
        self.in_step = False
        if not self.skipped:
            return
        self.skipped = False
        self.count += 1
        step = unit.train_progress.num_steps_completed
        names = self._names()
        if distutils.is_master():
            row = {"kind": "skipped", "step": step, "structures": names, "skipped": self.count}
            metrics_file.append(self.path, row)
            logger.warning(
                f"step {step} is left out: its loss or gradient is not finite (structures "
                f"{name_structures(names)}; {self.count} so far, at most {self.max_skipped})"
            )
        if self.count > self.max_skipped:
            raise DataError(
                f"the loss or its gradient is not finite at step {step} (structures "
                f"{name_structures(names)}), after {self.max_skipped} such steps were left out; "
                f"{ADVICE}"
            )

    def on_train_end(self, state: Any, unit: Any) -> None:
        """Put everything back."""
        self.watcher.detach()
        while self._undo:
            self._undo.pop()()

    def on_exception(self, state: Any, unit: Any, exc: BaseException) -> None:
        """Put everything back."""
        self.on_train_end(state, unit)

    def _spread(self, _module: Any, _inputs: Any, loss: torch.Tensor) -> torch.Tensor | None:
        """Return a loss whose gradient is no number where fairchem would put zero for an error."""
        if not torch.is_grad_enabled():
            return None
        # Only from here on: saving a checkpoint can call the optimiser's step between steps.
        self.in_step = True
        if not self.watcher.raw_finite:
            return None
        finite = torch.stack(self.watcher.raw_finite).all()
        return loss * torch.where(finite, 1.0, torch.nan)

    def _is_bad(self, unit: Any) -> bool:
        if self.in_step:
            norm = unit.last_grad_norm
            if unit.clip_grad_norm is None:
                gradients = [p.grad for p in unit.model.parameters() if p.grad is not None]
                norm = torch.nn.utils.get_total_norm(gradients)
            self.skipped = not bool(torch.isfinite(norm))
        return self.skipped

    def _replace(self, owner: Any, name: str, wanted: Callable[[], bool]) -> None:
        """Let a method of an object run only where it is wanted."""
        original = getattr(owner, name)
        before = vars(owner).get(name)

        @functools.wraps(original)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **kwargs) if wanted() else None

        def undo() -> None:
            delattr(owner, name)
            if before is not None:
                setattr(owner, name, before)

        setattr(owner, name, guarded)
        self._undo.append(undo)

    def _names(self) -> list[str]:
        """Return the structures of the ranks with errors that are not finite, else of all."""
        finite = self.watcher.raw_finite
        guilty = bool(finite) and not bool(torch.stack(finite).all())
        found = [(guilty, self.watcher.sids)]
        if distutils.get_world_size() > 1:
            found = [None] * distutils.get_world_size()
            torch.distributed.all_gather_object(found, (guilty, self.watcher.sids))
        known = any(guilty for guilty, _ in found)
        return [sid for guilty, sids in found for sid in sids if guilty or not known]
