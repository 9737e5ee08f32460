"""What backbones made of like layers share: compiled calls, recomputation, gates for a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from est_ocp.models.interface import FairchemBackbone
from est_ocp.models.layer_call import LayerCall
from est_ocp.nn import GateRecorder

#: What goes from layer to layer.
Features = torch.Tensor | tuple[torch.Tensor, ...]


class LayeredBackbone(FairchemBackbone):
    """Base of backbones that run ``self.blocks`` one after the other.

    Parameters
    ----------
    call_layer : LayerCall
        How layers, and what else a subclass passes through it, are called.
    activation_checkpointing : bool
        Recompute layers in the backward pass.

    Attributes
    ----------
    blocks : ModuleList
        Set by the subclass.
    record_gates : bool
        Set by a head that needs the experts' gates.
    """

    blocks: nn.ModuleList

    def __init__(self, call_layer: LayerCall, activation_checkpointing: bool) -> None:
        super().__init__()
        self.call_layer = call_layer
        self.activation_checkpointing = activation_checkpointing
        self.record_gates = False

    def run_blocks(self, x: Features, *arguments: Any) -> tuple[Features, dict[str, Any]]:
        """Pass ``x``, one tensor or a tuple, through all layers; each also gets ``arguments``.

        Returns
        -------
        Tensor or tuple of Tensor
            As the last layer returns it.
        dict
            ``gates`` (:class:`est_ocp.nn.GateRecorder`) when a head asked for them, else empty.
        """
        if not self.record_gates:
            return self._run_blocks(x, *arguments), {}
        with GateRecorder(self) as recorder:
            return self._run_blocks(x, *arguments), {"gates": recorder}

    def _run_blocks(self, x: Features, *arguments: Any) -> Features:
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            features = x if isinstance(x, tuple) else (x,)
            if recompute:
                x = checkpoint(self.call_layer, block, *features, *arguments, use_reentrant=False)
            else:
                x = self.call_layer(block, *features, *arguments)
        return x
