"""Bytes that autograd keeps for the backward pass: memory of training on a CPU."""

from __future__ import annotations

import torch
from torch import nn


class KeptBytes:
    """Bytes that autograd keeps for the backward pass: distinct tensors, weights left out."""

    def __init__(self, module: nn.Module) -> None:
        self._weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self._kept: dict[int, tuple[torch.Tensor, int]] = {}

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Context of a forward pass."""

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._weights:
                # Held, so that nothing else comes to lie at its address.
                self._kept[storage.data_ptr()] = tensor, storage.nbytes()
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)

    @property
    def total(self) -> int:
        """All of them."""
        return sum(size for _, size in self._kept.values())
