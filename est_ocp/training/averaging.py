"""fairchem's running average of the weights without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from est_ocp.models.cuda_graph import Weights


class LeanAverage:
    """The same as an average's ``update_parameters``, with less to do in each step.

    ``AveragedModel`` asks the device twice a step how many steps it has averaged, walks through
    all modules, and copies buffers one by one: in small models much of a step's time on the
    host, which meanwhile cannot prepare the next one. Here the tensors are listed once, and again
    whenever one is replaced; they are averaged by the same function of the same tensors, and
    buffers are copied together.

    Parameters
    ----------
    average : AveragedModel
        With a ``multi_avg_fn``, and its parameters on the model's devices.
    """

    def __init__(self, average: AveragedModel) -> None:
        self.average = average
        self._update = average.update_parameters
        self._known: tuple[Weights, Weights] | None = None
        self._model: nn.Module | None = None

    @staticmethod
    def fits(average: Any) -> bool:
        """Whether an average is such a one."""
        return (
            type(average) is AveragedModel
            and average.multi_avg_fn is not None
            and not average.use_buffers
        )

    def __call__(self, model: nn.Module) -> None:
        """Take a step of the model's into the average."""
        if self._known is None:
            # The first one copies, or asks after a resume: as it is written there.
            self._update(model)
            self._list(model)
            return
        if model is not self._model or not all(weights.unmoved() for weights in self._known):
            self._list(model)
        count = self.average.n_averaged
        with torch.no_grad():
            for averaged, current in self._parameters:
                self.average.multi_avg_fn(averaged, current, count)
            for kept, current in self._buffers:
                torch._foreach_copy_(kept, current)
            count += 1

    def _list(self, model: nn.Module) -> None:
        own = self.average.module
        self._model, self._known = model, (Weights(own), Weights(model))
        self._parameters = _pairs(own.parameters(), model.parameters())
        self._buffers = _pairs(own.buffers(), model.buffers())


def _pairs(
    kept: Iterator[torch.Tensor], current: Iterator[torch.Tensor]
) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Lists of tensors and of their counterparts, one pair of lists a device and type."""
    groups: dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for ours, theirs in zip(kept, current, strict=True):
        group = groups.setdefault((ours.device, ours.dtype, theirs.dtype), ([], []))
        group[0].append(ours.detach())
        group[1].append(theirs.detach())
    return list(groups.values())


@contextmanager
def lean_average(unit: Any) -> Iterator[None]:
    """Let a unit of fairchem average its weights by :class:`LeanAverage`, if it averages them.

    Parameters
    ----------
    unit : MLIPTrainEvalUnit
    """
    average = unit.ema_model
    if not LeanAverage.fits(average):
        yield
        return
    average.update_parameters = LeanAverage(average)
    try:
        yield
    finally:
        del average.update_parameters
