"""Calls of layers, through ``torch.compile`` where that is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class LayerCall:
    """Call layers as they are or compiled with dynamic shapes.

    On a CPU without gradients nothing is compiled: a few evaluations would not pay for it.

    Parameters
    ----------
    compiled : bool
        Whether to compile.
    """

    def __init__(self, compiled: bool) -> None:
        self.compiled = compiled

    def __call__(self, layer: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``layer(*arguments)``; the first argument is a tensor."""
        if self.compiled and (torch.is_grad_enabled() or arguments[0].is_cuda):
            return _compiled(layer, *arguments)
        return layer(*arguments)


def _call(layer: Callable[..., Any], *arguments: Any) -> Any:
    return layer(*arguments)


# One function for all layers: those of one kind share its graphs, so only the first is compiled.
_compiled = torch.compile(_call, dynamic=True)
