"""Convolutions that commute with rotations about the edge."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.nn.coefficient_index import check_degrees, num_frame_rows


class SO2PairLinear(nn.Module):
    """Complex linear map of the pair of rows ``+m`` and ``-m``, without bias.

    With ``z = x_{+m} + i x_{-m}`` the map is ``(A + i B) z``, the most general linear map that
    commutes with rotations about the polar axis. It runs as one real matrix product with
    ``[[A, -B], [B, A]]``.

    Parameters
    ----------
    in_features, out_features : int
        Features of one member of the pair, degrees times channels.

    Attributes
    ----------
    weight : Tensor [2 * out_features, in_features]
        A above B.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(2 * out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights uniformly; each output sums two products, hence the root of two."""
        bound = 1.0 / math.sqrt(2.0 * self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map pairs ``x`` [E, 2 * in_features] to [E, 2 * out_features]."""
        real, imaginary = self.weight.chunk(2, dim=0)
        upper = torch.cat((real, -imaginary), dim=1)
        lower = torch.cat((imaginary, real), dim=1)
        return nn.functional.linear(x, torch.cat((upper, lower), dim=0))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class SO2Convolution(nn.Module):
    """Linear maps of each order of features in the edge's frame (order-major rows).

    The ``m = 0`` rows of all degrees and channels go through one ordinary linear layer, which may
    also give extra scalars; each ``m > 0`` pair goes through one complex linear layer
    (:class:`SO2PairLinear`). Inputs are first multiplied by radial weights where given. As in
    EquiformerV2 (arXiv 2306.12059, section 4) and eSCN.

    Parameters
    ----------
    in_channels, out_channels : int
    lmax, mmax : int
        Degrees and orders of the input.
    lmin_out, lmax_out : int
        Degrees of the output; default all. Orders of the output are at most
        ``min(mmax, lmax_out)``; input rows of higher orders are ignored, and nothing is built
        that the output degrees do not need.
    extra_channels : int
        Number of extra scalars.

    Attributes
    ----------
    num_radial_weights : int
        Radial weights an edge: one for each degree and channel of each order read.
    num_rows_in, num_rows_out : int
        Order-major rows needed of the input and made.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        lmax: int,
        mmax: int,
        *,
        lmin_out: int = 0,
        lmax_out: int | None = None,
        extra_channels: int = 0,
    ) -> None:
        super().__init__()
        lmax_out = lmax if lmax_out is None else lmax_out
        check_degrees(lmax, mmax, lmin_out, lmax_out)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.lmax = lmax
        self.mmax = min(mmax, lmax_out)
        self.lmin_out = lmin_out
        self.lmax_out = lmax_out
        self.extra_channels = extra_channels

        self.degrees_in = [lmax + 1 - order for order in range(self.mmax + 1)]
        self.degrees_out = [lmax_out + 1 - max(order, lmin_out) for order in range(self.mmax + 1)]
        features_in = [count * in_channels for count in self.degrees_in]
        features_out = [count * out_channels for count in self.degrees_out]
        self.num_rows_in = num_frame_rows(lmax, self.mmax)
        self.num_rows_out = self.degrees_out[0] + 2 * sum(self.degrees_out[1:])
        self.num_radial_weights = sum(features_in)
        self._features_in = features_in
        self._features_out_0 = features_out[0]
        self._rows_in = [self.degrees_in[0], *(2 * count for count in self.degrees_in[1:])]

        self.scalar_linear = nn.Linear(features_in[0], extra_channels + features_out[0])
        self.pair_linears = nn.ModuleList(
            SO2PairLinear(features_in[order], features_out[order])
            for order in range(1, self.mmax + 1)
        )

    def forward(
        self, x: torch.Tensor, radial: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Convolve.

        Parameters
        ----------
        x : Tensor [E, R_in, in_channels]
            Order-major rows; at least the first ``num_rows_in``.
        radial : Tensor [E, num_radial_weights], optional
            Multiplies the input: order by order, in each by degree and channel.

        Returns
        -------
        out : Tensor [E, num_rows_out, out_channels]
            Order-major rows of degrees ``lmin_out..lmax_out``.
        extra : Tensor [E, extra_channels]
        """
        num_edges = x.shape[0]
        weights = None if radial is None else radial.split(self._features_in, dim=1)
        # One split and not slices: its derivative writes the gradient of `x` in one piece.
        rows = x[:, : self.num_rows_in].split(self._rows_in, dim=1)

        scalars = rows[0].reshape(num_edges, self._features_in[0])
        if weights is not None:
            scalars = scalars * weights[0]
        scalars = self.scalar_linear(scalars)
        extra, scalars = scalars.split((self.extra_channels, self._features_out_0), dim=1)
        outputs = [scalars.reshape(num_edges, self.degrees_out[0], self.out_channels)]

        for order, linear in enumerate(self.pair_linears, start=1):
            pair = rows[order].reshape(num_edges, 2, self._features_in[order])
            if weights is not None:
                pair = pair * weights[order].unsqueeze(1)
            pair = linear(pair.reshape(num_edges, 2 * self._features_in[order]))
            outputs.append(pair.reshape(num_edges, 2 * self.degrees_out[order], self.out_channels))
        return torch.cat(outputs, dim=1), extra

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, lmax={self.lmax}, "
            f"mmax={self.mmax}, lmin_out={self.lmin_out}, lmax_out={self.lmax_out}"
        )
