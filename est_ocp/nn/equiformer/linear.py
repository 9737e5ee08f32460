"""Degree-wise linear map of irreps of unequal widths."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn.equiformer.layout import Blocks, IrrepsLayout


class IrrepsLinear(nn.Module):
    """Mix the channels of each degree by a matrix of that degree.

    Equiformer's "LinearRS" and, with scalar node attributes of width one, its fully connected
    tensor product: the rescaling by ``1/sqrt(fan-in)`` lives in the weights' start, a normal
    distribution. Degrees of the input that the output lacks have no weights.

    Parameters
    ----------
    irreps_in, irreps_out : IrrepsLayout
    bias : bool
        Add a bias to the scalars, if there are any; it starts at zero.

    Attributes
    ----------
    weights : ParameterList
        One matrix [width out, width in] for each degree of the output.
    bias : Parameter [scalars out] or None

    Raises
    ------
    ConfigError
        If the output has a degree that the input lacks.
    """

    def __init__(
        self, irreps_in: IrrepsLayout, irreps_out: IrrepsLayout, bias: bool = True
    ) -> None:
        super().__init__()
        missing = [d for d in irreps_out.degrees if d not in irreps_in.degrees]
        if missing:
            raise ConfigError(
                f"a degree-wise linear map from {irreps_in} cannot make degree {missing[0]} of "
                f"{irreps_out}; give both the same degrees"
            )
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        self.positions = [irreps_in.degrees.index(d) for d in irreps_out.degrees]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(irreps_out.width(d), irreps_in.width(d)))
            for d in irreps_out.degrees
        )
        if bias and irreps_out.width(0):
            self.bias = nn.Parameter(torch.empty(irreps_out.width(0)))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights of variance ``1/fan-in``; set the bias to zero."""
        for weight in self.weights:
            nn.init.normal_(weight, 0.0, 1.0 / math.sqrt(weight.shape[1]))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, blocks: Blocks, scales: Sequence[torch.Tensor] | None = None) -> Blocks:
        """Map blocks.

        Parameters
        ----------
        blocks : list of Tensor [N, 2l+1, width in]
            Of ``irreps_in``.
        scales : sequence of Tensor [width in], optional
            Factors of the input's channels, one tensor a degree of ``irreps_in``. They multiply
            the matrices, which are smaller than the features.

        Returns
        -------
        list of Tensor [N, 2l+1, width out]
        """
        weights = list(self.weights)
        if scales is not None:
            weights = [w * scales[i] for w, i in zip(weights, self.positions, strict=True)]
        degrees = self.irreps_out.degrees
        return [
            nn.functional.linear(blocks[position], weight, self.bias if degree == 0 else None)
            for degree, position, weight in zip(degrees, self.positions, weights, strict=True)
        ]

    def extra_repr(self) -> str:
        return f"{self.irreps_in} -> {self.irreps_out}, bias={self.bias is not None}"
