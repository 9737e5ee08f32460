"""Stochastic depth and dropout that keep equivariance."""

from __future__ import annotations

import torch
from torch import nn


class GraphDropPath(nn.Module):
    """Drop a residual branch for whole graphs at random (stochastic depth).

    Every graph of the batch draws once, and all its nodes share the draw; kept branches are
    divided by the probability of being kept. Nothing happens in evaluation mode.

    Parameters
    ----------
    drop_prob : float
        Probability that a graph loses the branch, in [0, 1).
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: torch.Tensor, batch: torch.Tensor, num_graphs: int) -> torch.Tensor:
        """Apply to ``x`` [N, ...] with graph numbers ``batch`` [N] in ``range(num_graphs)``."""
        if not self.training or self.drop_prob == 0.0:
            return x
        keep = 1.0 - self.drop_prob
        draws = torch.rand(num_graphs, device=x.device) < keep
        factor = draws.to(x.dtype) / keep
        return x * factor[batch].reshape(-1, *([1] * (x.dim() - 1)))

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}"


class EquivariantDropout(nn.Module):
    """Dropout of whole channels: all coefficients of a node's channel live or vanish together.

    Parameters
    ----------
    p : float
        Probability that a channel of a node is zeroed.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to ``x`` [N, I, C]."""
        if not self.training or self.p == 0.0:
            return x
        mask = torch.nn.functional.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.p)
        return x * mask

    def extra_repr(self) -> str:
        return f"p={self.p}"
