"""Degree-wise linear map of steerable features."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.nn.coefficient_index import degree_selection
from est_ocp.sphere import ConstantBuffers


class SO3Linear(ConstantBuffers):
    """Mix the channels of each degree with a matrix of that degree.

    ``y[n, (l, m), o] = sum_c W[l, o, c] x[n, (l, m), c] + (l == 0) b[o]``. All orders of a degree
    share the matrix and only scalars have a bias, which makes the map strictly equivariant. It runs
    as one batched product with a matrix a coefficient: a product a degree would be many small
    ones.

    Parameters
    ----------
    in_channels, out_channels : int
        Number of channels before and after.
    lmax : int
        Largest degree of the features.
    bias : bool
        Add a bias to the scalars. Without scalars (``lmin > 0``) there is none.
    lmin : int
        Smallest degree of the features, which then hold ``(lmax+1)**2 - lmin**2`` coefficients.

    Attributes
    ----------
    weight : Tensor [lmax + 1 - lmin, out_channels, in_channels]
    bias : Tensor [out_channels] or None
    """

    def __init__(
        self, in_channels: int, out_channels: int, lmax: int, bias: bool = True, lmin: int = 0
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.lmin = lmin
        self.lmax = lmax
        self.weight = nn.Parameter(torch.empty(lmax + 1 - lmin, out_channels, in_channels))
        if bias and lmin == 0:
            self.bias = nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.register_constant("selection", degree_selection(lmax, lmin))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights uniformly in ``+-1/sqrt(in_channels)``; the bias starts at zero."""
        bound = 1.0 / math.sqrt(self.in_channels)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x`` [N, I, in_channels] to [N, I, out_channels], I = (lmax+1)**2 - lmin**2."""
        # One factor of each row is one and all others are zero: exact in any precision.
        weight = torch.matmul(self.selection.to(self.weight.dtype), self.weight.flatten(1))
        weight = weight.unflatten(1, self.weight.shape[1:]).transpose(1, 2)
        x = x.transpose(0, 1)
        if self.bias is None:
            return torch.bmm(x, weight).transpose(0, 1)
        bias = nn.functional.pad(self.bias[None], (0, 0, 0, len(weight) - 1))
        return torch.baddbmm(bias[:, None], x, weight).transpose(0, 1)

    def extra_repr(self) -> str:
        degrees = f"lmax={self.lmax}" if self.lmin == 0 else f"lmin={self.lmin}, lmax={self.lmax}"
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"{degrees}, bias={self.bias is not None}"
        )
