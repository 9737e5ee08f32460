"""Types under autocast."""

from __future__ import annotations

import torch


def in_autocast_dtype(x: torch.Tensor) -> torch.Tensor:
    """Cast to autocast's type where it is on: once a node, or a batch, and not at every use."""
    if x.dtype == torch.float32 and torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x
