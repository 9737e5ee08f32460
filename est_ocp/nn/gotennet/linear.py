"""Linear maps that share an input, as one matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class FusedLinear(nn.Linear):
    """Several linear maps of one input in one matrix product.

    Every map starts as if it were alone: weights by Glorot's uniform rule (Xavier), GotenNet's
    initialisation, biases zero.

    Parameters
    ----------
    in_channels : int
    widths : sequence of int
        Output widths, one a map.
    bias : bool
    """

    def __init__(self, in_channels: int, widths: Sequence[int], bias: bool = True) -> None:
        self.widths = list(widths)
        super().__init__(in_channels, sum(self.widths), bias)

    def reset_parameters(self) -> None:
        """Draw the weights, set the biases to zero."""
        for weight in self.weight.split(self.widths):
            nn.init.xavier_uniform_(weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Apply all maps to ``x`` [..., in_channels]; one tensor [..., width] a map."""
        return super().forward(x).split(self.widths, dim=-1)


def glorot_linear(in_channels: int, out_channels: int, bias: bool = True) -> nn.Linear:
    """One linear map with GotenNet's initialisation."""
    linear = nn.Linear(in_channels, out_channels, bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
