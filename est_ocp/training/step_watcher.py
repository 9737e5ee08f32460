"""See what a training step saw: its batch, and the loss of each task."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def inner_model(unit: Any) -> nn.Module:
    """Return the unit's model without its data-parallel wrapper."""
    model = unit.model
    return getattr(model, "module", model)


class StepWatcher:
    """Records, through forward hooks, what fairchem's unit keeps to itself.

    Nothing is copied to the host; the attributes hold references and detached tensors.

    Attributes
    ----------
    num_samples, num_atoms : int
        Size of this rank's last batch.
    sids : list of str
        Identifiers of the batch's structures.
    task_losses : dict of str to Tensor
        This rank's share of each task's weighted loss (their mean over ranks is the loss).
    raw_finite : list of Tensor (bool, 0-d)
        For each task of the last step, whether all unreduced errors were finite; fairchem sets
        losses that are not to zero.
    """

    def __init__(self) -> None:
        self.num_samples = 0
        self.num_atoms = 0
        self.sids: list[str] = []
        self.task_losses: dict[str, torch.Tensor] = {}
        self.raw_finite: list[torch.Tensor] = []
        self._handles: list[Any] = []

    def attach(self, unit: Any) -> None:
        """Put the hooks on a unit's model and losses."""
        # the unit calls model.forward, which runs no hooks of the model itself
        backbone = inner_model(unit).backbone
        self._handles.append(backbone.register_forward_pre_hook(self._see_batch))
        for task in unit.tasks:
            self._handles.append(task.loss_fn.register_forward_hook(self._loss_hook(task.name)))
            raw = getattr(task.loss_fn, "loss_fn", None)
            if isinstance(raw, nn.Module):
                self._handles.append(raw.register_forward_hook(self._see_raw_loss))

    def detach(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _see_batch(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not module.training:
            return
        data = inputs[0]
        self.num_samples = data.natoms.numel()
        self.num_atoms = data.pos.shape[0]
        self.sids = [str(s) for s in data.sid] if "sid" in data else []
        self.task_losses = {}
        self.raw_finite = []

    def _loss_hook(self, name: str) -> Any:
        def see_loss(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            if torch.is_grad_enabled():
                self.task_losses[name] = output.detach()

        return see_loss

    def _see_raw_loss(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        if torch.is_grad_enabled():
            self.raw_finite.append(torch.isfinite(output.detach()).all())
