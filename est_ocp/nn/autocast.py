"""Types under autocast."""

from __future__ import annotations

import torch


def autocast_dtype(x: torch.Tensor) -> torch.dtype:
    """Type that :func:`in_autocast_dtype` gives a tensor."""
    if x.dtype == torch.float32 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def in_autocast_dtype(x: torch.Tensor) -> torch.Tensor:
    """Cast to autocast's type where it is on: once a node, or a batch, and not at every use."""
    return x.to(autocast_dtype(x))
