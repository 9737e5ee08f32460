"""Stop a training whose loss is no longer a number."""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.common import distutils
from torchtnt.framework.callback import Callback

from est_ocp.errors import DataError
from est_ocp.training.step_watcher import StepWatcher

ADVICE = (
    "lower optim.lr or optim.clip_grad_norm, set optim.bf16=false, or remove the structures, then "
    "continue from the newest checkpoint with `est-ocp resume`"
)


def name_structures(sids: list[str]) -> str:
    """Return the first few identifiers for a message."""
    return ", ".join(sids[:8]) + (", ..." if len(sids) > 8 else "") or "unnamed"


class StopOnNonFiniteLoss(Callback):
    """Raise when errors or the gradient's norm are infinite or not numbers, naming the structures.

    fairchem replaces such losses by zero and trains on with weights that may be spoilt. The steps
    are judged together every ``check_every`` steps, so that the device is not waited for.
    :class:`SkipNonFiniteSteps` leaves such steps out instead.

    Parameters
    ----------
    check_every : int
        Steps between checks; keep it a divisor of the checkpoint interval, so that no spoilt
        checkpoint is written.
    """

    def __init__(self, check_every: int = 50) -> None:
        self.check_every = check_every
        self.watcher = StepWatcher()
        self.pending: list[tuple[int, list[str], torch.Tensor]] = []

    def on_train_start(self, state: Any, unit: Any) -> None:
        """Begin to watch."""
        self.watcher.attach(unit)

    def on_train_step_end(self, state: Any, unit: Any) -> None:
        """Note the step; judge the noted ones where a check is due."""
        finite = list(self.watcher.raw_finite)
        if unit.last_grad_norm is not None:
            finite.append(torch.isfinite(torch.as_tensor(unit.last_grad_norm)))
        step = unit.train_progress.num_steps_completed
        if finite:
            device = distutils.get_device_for_local_rank()
            ok = torch.stack([f.to(device) for f in finite]).all()
            self.pending.append((step, self.watcher.sids, ok))
        if step % self.check_every == 0:
            self._check()

    def on_train_end(self, state: Any, unit: Any) -> None:
        """Judge the last steps before the final checkpoint is written."""
        self._check()
        self.watcher.detach()

    def _check(self) -> None:
        pending, self.pending = self.pending, []
        ok = torch.stack([p[2] for p in pending]).tolist() if pending else []
        bad = [(step, sids) for (step, sids, _), good in zip(pending, ok, strict=True) if not good]
        device = distutils.get_device_for_local_rank()
        flag = torch.tensor(float(bool(bad)), device=device)
        if distutils.get_world_size() > 1:
            flag = distutils.all_reduce(flag, average=False, device=device)
        if not flag:
            return
        if not bad:
            raise DataError(f"the loss is not finite on another rank; {ADVICE}")
        step, sids = bad[0]
        raise DataError(
            f"the loss or its gradient is not finite at step {step} "
            f"(structures {name_structures(sids)}); {ADVICE}"
        )
