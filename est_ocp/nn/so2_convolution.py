"""Convolutions that commute with rotations about the edge."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.nn.autocast import in_autocast_dtype
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
        weight = in_autocast_dtype(self.weight)
        real, imaginary = weight.chunk(2, dim=0)
        turned = torch.cat((-imaginary, real), dim=0)
        return nn.functional.linear(x, torch.cat((weight, turned), dim=1))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def sort_by_order(
    x: torch.Tensor, degrees: int, orders: int, radial: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Split order-major rows by order, times radial weights.

    Parameters
    ----------
    x : Tensor [E, R, C]
        Order-major rows; at least those of the orders wanted.
    degrees, orders : int
        Degrees, lmax + 1, and orders wanted, mmax + 1.
    radial : Tensor [E, W], optional
        A weight for each order, degree and channel; the rows ``+m`` and ``-m`` share it.

    Returns
    -------
    list of Tensor
        For order 0 [E, degrees * C], for each order m above it the rows ``+m`` and then ``-m``,
        [E, 2 * (degrees - m) * C].
    """
    num_edges, _, channels = x.shape
    counts = [degrees - order for order in range(orders)]
    weights = None
    if radial is not None:
        weights = radial.split([count * channels for count in counts], dim=1)
    # One split and not slices: its derivative writes the gradient of `x` in one piece.
    sizes = [counts[0], *(2 * count for count in counts[1:])]
    rows = x[:, : sum(sizes)].split(sizes, dim=1)

    scalars = rows[0].reshape(num_edges, counts[0] * channels)
    if weights is not None:
        scalars = scalars * weights[0]
    inputs = [scalars]
    for order in range(1, orders):
        pair = rows[order].reshape(num_edges, 2, counts[order] * channels)
        if weights is not None:
            pair = pair * weights[order].unsqueeze(1)
        inputs.append(pair.reshape(num_edges, 2 * counts[order] * channels))
    return inputs


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
        self._features_out_0 = features_out[0]

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
        return self.multiply(sort_by_order(x, self.lmax + 1, self.mmax + 1, radial))

    def multiply(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Apply the linear map of each order to rows sorted by :func:`sort_by_order`.

        Returns
        -------
        out, extra : Tensor
            As :meth:`forward` does.
        """
        num_edges = inputs[0].shape[0]
        scalars = self.scalar_linear(inputs[0])
        extra, scalars = scalars.split((self.extra_channels, self._features_out_0), dim=1)
        outputs = [scalars.reshape(num_edges, self.degrees_out[0], self.out_channels)]
        for order, linear in enumerate(self.pair_linears, start=1):
            pair = linear(inputs[order])
            outputs.append(pair.reshape(num_edges, 2 * self.degrees_out[order], self.out_channels))
        return torch.cat(outputs, dim=1), extra

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, lmax={self.lmax}, "
            f"mmax={self.mmax}, lmin_out={self.lmin_out}, lmax_out={self.lmax_out}"
        )
