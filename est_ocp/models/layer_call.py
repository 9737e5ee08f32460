"""Calls of layers, through ``torch.compile`` where that is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo import config as dynamo_config
from torch._functorch import config as functorch_config

from est_ocp.errors import ConfigError

#: When layers are compiled.
MODES = ("never", "training", "always")

#: Graphs that may be compiled: each kind of layer, with gradients and without. At its default of
#: 8 PyTorch would run further kinds as they are.
MAX_GRAPHS = 64


class LayerCall:
    """Call layers as they are or, on GPUs, compiled with dynamic shapes.

    Parameters
    ----------
    mode : {"never", "training", "always"}
        When to compile: where gradients are computed, or without them too. The first call of each
        kind takes a minute or two.
    memory_budget : float
        Share of the activations that a compiled layer keeps for its backward pass, 0 to 1; the
        others are computed again.
    allowed : bool
        False: never compile, whatever the mode, because the layers are differentiated twice.

    Raises
    ------
    ConfigError
        If the mode is unknown or the budget is not in 0..1.
    """

    def __init__(
        self, mode: str = "never", memory_budget: float = 1.0, allowed: bool = True
    ) -> None:
        if mode not in MODES:
            raise ConfigError(
                f"model.backbone.compile_layers must be one of {', '.join(MODES)}, not '{mode}'"
            )
        if not 0.0 <= memory_budget <= 1.0:
            raise ConfigError(
                f"model.backbone.memory_budget must lie in 0..1, got {memory_budget:g}"
            )
        self.mode = mode
        self.memory_budget = memory_budget
        self.allowed = allowed

    def __call__(self, layer: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``layer(*arguments)``; the first argument is a tensor."""
        if not self._wanted(arguments[0].device):
            return layer(*arguments)
        with (
            functorch_config.patch(activation_memory_budget=self.memory_budget),
            # Symbolic numbers of settings would have every layer traced twice.
            dynamo_config.patch(recompile_limit=MAX_GRAPHS, specialize_float=True),
        ):
            return _compiled(layer, *arguments)

    def _wanted(self, device: torch.device) -> bool:
        if device.type != "cuda" or self.mode == "never" or not self.allowed:
            return False
        return self.mode == "always" or torch.is_grad_enabled()


def _call(layer: Callable[..., Any], *arguments: Any) -> Any:
    return layer(*arguments)


# One function for all layers: those of one kind share its graphs, so only the first is compiled.
_compiled = torch.compile(_call, dynamic=True)
