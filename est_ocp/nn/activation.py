"""Smooth leaky ReLU of the attention logits."""

from __future__ import annotations

import torch
from torch import nn


def smooth_leaky_relu(x: torch.Tensor, negative_slope: float = 0.2) -> torch.Tensor:
    """Leaky ReLU with a smooth kink: slopes 1 and ``negative_slope`` far from zero.

    ``(1 + a)/2 x + (1 - a)/2 x (2 sigmoid(x) - 1)`` with ``a = negative_slope`` (Equiformer,
    arXiv 2206.11990, appendix).
    """
    # The formula collects to a x + (1 - a) x sigmoid(x).
    return negative_slope * x + (1.0 - negative_slope) * nn.functional.silu(x)
