"""Features of edges on the sphere as few rows of channels, each with a function."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.nn.autocast import autocast_dtype
from est_ocp.nn.axial_attention import AxialAttention, CoefficientNorm
from est_ocp.nn.small_products import pad_points, row_products
from est_ocp.nn.triton.support import can_fuse, functions_fit, shared_memory
from est_ocp.sphere import ConstantBuffers, SphereRule, SphericalTransform, spherical_harmonics


class EdgeRows(ConstantBuffers):
    r"""Norm and activation of ``f = Y h / (L + 1)`` plus what :class:`AxialAttention` adds to it.

    The J rows [E, J, D] of an edge and their functions at the points are

    ========================  ====================================  =============
    rows                      function                              number
    ========================  ====================================  =============
    constant of attention     1                                     1
    ``h``                     ``Y / (L + 1)``                       ``(L+1)^2``
    attention's coefficients  the edge's own                        ``heads L``
    ones                      1, not divided by the norm            1
    ========================  ====================================  =============

    All rows but that of ones are centred: their mean over channels is zero. With ``G_ab`` the mean
    over the sphere of the product of two functions the mean square of the feature is then
    ``sum_ab G_ab (rows rows^T)_ab / D``, and what a map does to the row of ones is free to be its
    bias. Points are filled up to S', a multiple of four.

    Parameters
    ----------
    rule : SphereRule
        The S points and their weights.
    transform : SphericalTransform
        Its way back.
    attention : AxialAttention
        Its functions and the inverse deviation of its queries.
    """

    def __init__(
        self, rule: SphereRule, transform: SphericalTransform, attention: AxialAttention
    ) -> None:
        super().__init__()
        self.channels, self.num_own = attention.channels, attention.num_functions
        harmonics = spherical_harmonics(rule.points, transform.lmax).T
        scaled = harmonics / (transform.lmax + 1)
        shared = torch.cat((torch.ones_like(scaled[:1]), scaled))
        num_shared = len(shared)
        num_rows = num_shared + self.num_own + 1
        of_query = torch.zeros(num_rows, rule.num_points, dtype=torch.float64)
        of_query[1:num_shared] = scaled
        # Columns: mean square of Y h / (L + 1), and that of all functions that edges share.
        squares = torch.zeros(num_rows, num_rows, 2, dtype=torch.float64)
        squares[1:num_shared, 1:num_shared, 0].fill_diagonal_(1.0 / (transform.lmax + 1) ** 2)
        squares[:num_shared, :num_shared, 1] = (shared * rule.weights) @ shared.T
        # Products of an own with a shared function count twice in a square.
        own_squares = torch.ones(self.num_own, num_rows - 1, dtype=torch.float64)
        own_squares[:, :num_shared] = 2.0
        self.register_constant("shared", pad_points(shared))
        # As the kernel reads it, so that it need not be copied in every call.
        self.register_constant("shared_by_point", pad_points(shared).T.contiguous())
        self.register_constant("of_query", pad_points(of_query))
        self.register_constant("point_weights", pad_points(rule.weights))
        self.register_constant("squares", squares.flatten(0, 1) / self.channels)
        self.register_constant("own_squares", own_squares.flatten() / self.channels)

    def attend(
        self,
        attention: AxialAttention,
        norm: CoefficientNorm,
        rows: torch.Tensor,
        probes: torch.Tensor,
        edge_sh: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Edges' own functions, and the norm of the feature that they complete.

        Parameters
        ----------
        attention : AxialAttention
        norm : CoefficientNorm
            Of the whole feature.
        rows : Tensor [E, J, D]
        probes : Tensor [E, heads * L, D]
            Of :meth:`AxialAttention.vectors`.
        edge_sh : Tensor [E, (L+1)**2]

        Returns
        -------
        own : Tensor [E, heads * L, S']
        factor : Tensor [E, 1, 1]
            Inverse deviation. Both at least float32.
        """
        with torch.autocast(rows.device.type, enabled=False):
            precise = torch.promote_types(rows.dtype, self.shared.dtype)
            products, overlap = row_products(rows.to(precise), probes.to(precise))
            of_query, of_shared = (products.flatten(1) @ self.squares).unbind(1)
            factor = attention.query_norm.inverse_deviation(of_query)[:, None, None]
            # The product with ones is what the bias of the queries' norm adds.
            factors = torch.addcmul(overlap[..., -1:], overlap @ self.of_query, factor)
            own = attention.functions(factors, edge_sh)
            weighted = own * self.point_weights
            means = torch.cat((weighted @ self.shared.T, torch.bmm(weighted, own.mT)), dim=-1)
            own_products = products[:, len(self.shared) : -1, :-1]
            variance = of_shared + (means * own_products).flatten(1) @ self.own_squares
            return own, norm.inverse_deviation(variance)[:, None, None]

    def can_fuse(self, rows: torch.Tensor) -> bool:
        """Whether the fused kernel, which has no second derivatives, applies to ``rows``."""
        dtype = autocast_dtype(rows)
        num_shared, num_points = self.shared.shape
        return can_fuse(rows, dtype) and functions_fit(
            num_points,
            num_shared,
            self.num_own,
            self.channels,
            dtype,
            shared_memory(rows.device),
        )

    def activate(
        self,
        rows: torch.Tensor,
        own: torch.Tensor,
        factor: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        from_points: torch.Tensor,
    ) -> torch.Tensor:
        """Coefficients of the SiLU of a map of the normalised feature.

        Parameters
        ----------
        rows : Tensor [E, J, D]
        own : Tensor [E, heads * L, S']
        factor : Tensor [E, 1, 1]
        weight : Tensor [H, D]
        bias : Tensor [H]
        from_points : Tensor [(L+1)**2, S]

        Returns
        -------
        Tensor [E, (L+1)**2, H]
        """
        surplus = (bias - weight.sum(dim=1)) / self.channels
        rows = nn.functional.linear(rows, weight + surplus.unsqueeze(1))
        ones = torch.ones_like(own[:, :1])
        functions = torch.cat((self.shared * factor, own * factor, ones), dim=1).to(rows.dtype)
        hidden = nn.functional.silu(torch.bmm(functions.mT, rows))
        back = pad_points(from_points).to(hidden.dtype)
        return torch.bmm(back.expand(len(hidden), -1, -1), hidden)

    def activate_fused(
        self,
        rows: torch.Tensor,
        own: torch.Tensor,
        factor: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        from_points: torch.Tensor,
    ) -> torch.Tensor:
        """As :meth:`activate`, in a kernel that writes and keeps no values at points."""
        # Imported here, as Triton is there on GPUs alone.
        from est_ocp.nn.triton.silu_on_functions import silu_on_functions

        rows = nn.functional.linear(rows[:, :-1] * factor, weight)
        functions = own.mT.to(rows.dtype)
        hidden = silu_on_functions(
            rows, functions, bias, self.shared_by_point, pad_points(from_points), 1
        )
        return hidden.squeeze(0)
