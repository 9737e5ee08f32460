"""Attention on the sphere whose keys and values come from one direction: that of an edge."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn.coefficient_index import degree_of_coefficient
from est_ocp.sphere import ConstantBuffers, SphereRule, spherical_harmonics


class CoefficientNorm(nn.Module):
    """:class:`est_ocp.nn.SphereNorm` of a band-limited feature, without going to the points.

    The mean over the sphere of a squared feature is the sum of its squared coefficients
    (component normalisation), so ``y = (x - mean_c x) / sqrt(sum_i n_i mean_c x_i^2 + eps)``, where
    ``x`` in the root is centred too. Then channels are scaled, and the bias, a constant on the
    sphere, is added to the scalars. Strictly equivariant; at least float32.

    Parameters
    ----------
    channels : int
        Width D.
    eps : float
        Added to the variance before the root.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor, multiplicity: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise ``x`` [E, I, D], scalars first; ``multiplicity`` [I] is ``n_i``, default 1."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, self.weight.dtype))
            centred = x - x.mean(dim=-1, keepdim=True)
            square = centred.square().mean(dim=-1)
            variance = square.sum(-1) if multiplicity is None else square @ multiplicity
            y = centred * torch.rsqrt(variance + self.eps)[:, None, None] * self.weight
            scalars, rest = y.split((1, y.shape[1] - 1), dim=1)
            return torch.cat((scalars + self.bias, rest), dim=1)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, eps={self.eps}"


class AxialAttention(ConstantBuffers):
    r"""Spherical attention of each edge: any queries, keys and values symmetric about the edge.

    The feature behind keys and values is ``e(p) = sum_l R_l sum_m Y_lm(p) Y_lm(r)`` with one
    vector of channels ``R_l`` a degree and the edge's direction ``r``. Write
    ``z_l(p) = sum_m Y_lm(p) Y_lm(r) = (2l + 1) P_l(p . r)``. Norm and linear maps act on
    channels, so

    .. math::
        k(t) = \sum_l K_l z_l(t),\qquad v(t) = \sum_l V_l z_l(t),\qquad
        q(s) = \sum_i Y_i(p_s) Q_i,

    with ``K, V, Q`` from the normalised coefficients. The logits
    ``q(s) . k(t) = sum_l [sum_i Y_i(p_s) (Q_i . K_l)] z_l(t)`` are then products of vectors of
    ``L + 1`` components whatever the width, and the result is
    ``sum_l [sum_t P_st z_l(t)] V_l``. The same numbers as :class:`est_ocp.nn.SphericalAttention`
    gives for queries from the one feature and keys and values from the other, but no tensor
    [E, S, D] is made. ``z_0 = 1``: its key shifts all logits of a query alike and is left out, its
    value is the same at all points. The constant bias (relative orientation and the logarithms of
    the weights) is carried by four more components of the same product, so that kernels without
    a mask serve.

    Parameters
    ----------
    channels : int
        Width D.
    lmax : int
        Degree L of queries, keys and values.
    rule : SphereRule
        The S points and their weights.
    num_heads : int
        Must divide `channels`.
    relative_orientation, quadrature : bool
        As of :class:`est_ocp.nn.SphericalAttention`.
    fused : bool
        PyTorch's fused kernels; off where second derivatives are needed.

    Raises
    ------
    ConfigError
        If `num_heads` does not divide `channels` or there is no degree above 0.
    """

    #: Edges that share one row of a kernel's grid, whose size CUDA limits to 65,535 rows.
    FOLD = 16

    def __init__(
        self,
        channels: int,
        lmax: int,
        rule: SphereRule,
        num_heads: int = 1,
        relative_orientation: bool = True,
        quadrature: bool = True,
        *,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ConfigError(
                f"num_heads = {num_heads} does not divide the {channels} channels of the EST "
                "message; choose a divisor"
            )
        if lmax < 1:
            raise ConfigError(f"attention on the sphere needs degrees of 1 or more, got {lmax}")
        self.channels, self.lmax, self.num_heads = channels, lmax, num_heads
        self.head_channels = channels // num_heads
        self.fused = fused
        self.scale = 1.0 / math.sqrt(self.head_channels)
        self.query_norm = CoefficientNorm(channels)
        self.context_norm = CoefficientNorm(channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.out = nn.Linear(channels, channels)
        degrees = torch.arange(lmax + 1, dtype=torch.float64)
        of_degree = degree_of_coefficient(lmax)[:, None] == torch.arange(1, lmax + 1)
        self.register_constant("multiplicity", 2 * degrees + 1)
        self.register_constant("of_degree", of_degree.double())
        self.register_constant("harmonics", spherical_harmonics(rule.points, lmax))
        query_part, key_part = self._bias_factors(rule, relative_orientation, quadrature)
        self.register_constant("query_part", query_part)
        self.register_constant("key_part", key_part)
        self.reset_parameters()

    def _bias_factors(
        self, rule: SphereRule, relative_orientation: bool, quadrature: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors [S, 4 + padding] of the constant bias; with the degrees a multiple of 8 wide."""
        size = rule.num_points
        points = rule.points if relative_orientation else torch.zeros_like(rule.points)
        logarithms = torch.log(size * rule.weights)[:, None] * float(quadrature)
        padding = torch.zeros(size, -(self.lmax + 4) % 8, dtype=torch.float64)
        query = (self.scale * points, torch.ones_like(logarithms), padding)
        return torch.cat(query, dim=1), torch.cat((points, logarithms, padding), dim=1)

    def reset_parameters(self) -> None:
        """Draw weights uniformly in ``+-1/sqrt(channels)``; the output bias starts at zero."""
        bound = 1.0 / math.sqrt(self.channels)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, h: torch.Tensor, radial: torch.Tensor, edge_sh: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attend.

        Parameters
        ----------
        h : Tensor [E, (L+1)**2, D]
            Coefficients of the feature that the queries come from.
        radial : Tensor [E, L + 1, D]
            ``R_l``.
        edge_sh : Tensor [E, (L+1)**2]
            Harmonics of the edges' directions.

        Returns
        -------
        functions : Tensor [E, S, num_heads * L]
            ``sum_t P_st z_l(t)`` for ``l >= 1``, by head, then degree.
        coefficients : Tensor [E, num_heads * L, D]
            What multiplies them in the result, the output map included.
        constant : Tensor [E, D]
            The same of ``l = 0``: the part of the result that is equal at all points. The
            result at a point is ``constant + functions @ coefficients``.
        """
        query = self.query(self.query_norm(h)).unflatten(-1, (self.num_heads, -1))
        context = self.context_norm(radial, self.multiplicity)
        key = self.key(context[:, 1:]).unflatten(-1, (self.num_heads, -1))
        with torch.autocast(h.device.type, enabled=False):
            # In float32: the logits' factors, small tensors.
            precise = torch.promote_types(query.dtype, self.harmonics.dtype)
            overlap = torch.einsum("eihd,elhd->ehil", query.to(precise), key.to(precise))
            logit_factors = torch.matmul(self.harmonics, overlap * self.scale)
            axial = torch.matmul(self.harmonics, edge_sh.to(precise).unsqueeze(-1) * self.of_degree)
            functions = self._attend(logit_factors, axial, query.dtype)
        value = self.value(context)
        constant = self.out(value[:, 0])
        value = value[:, 1:].unflatten(-1, (self.num_heads, -1))
        weight = self.out.weight.unflatten(-1, (self.num_heads, -1))
        coefficients = torch.einsum("elhd,ohd->ehlo", value, weight.to(value.dtype)).flatten(1, 2)
        return functions.transpose(1, 2).flatten(2), coefficients, constant

    def _attend(
        self, logit_factors: torch.Tensor, axial: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """Softmax-weighted means [E, heads, S, L] of ``axial`` [E, S, L] in ``dtype``."""
        query = _append(logit_factors, self.query_part)
        key = _append(axial, self.key_part)[:, None].expand_as(query)
        value = axial[:, None].expand_as(logit_factors)
        if self.fused:
            return self._attend_fused(query.to(dtype), key.to(dtype), value.to(dtype))
        weights = torch.softmax(torch.matmul(query, key.transpose(-1, -2)), dim=-1)
        return torch.matmul(weights, value).to(dtype)

    def _attend_fused(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        # The kernels want values as wide as the keys; the softmax accumulates in float32.
        v = nn.functional.pad(v, (0, q.shape[-1] - v.shape[-1]))
        num_edges = q.shape[0]
        q, k, v = (self._fold(x) for x in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)
        out = out.reshape(-1, self.num_heads, *out.shape[-2:])
        return out[:num_edges, ..., : self.lmax]

    def _fold(self, x: torch.Tensor) -> torch.Tensor:
        """[E, H, S, d] to [ceil(E / FOLD), FOLD * H, S, d], filled up with zeros."""
        x = nn.functional.pad(x, (0, 0, 0, 0, 0, 0, 0, -x.shape[0] % self.FOLD))
        return x.reshape(x.shape[0] // self.FOLD, self.FOLD * self.num_heads, *x.shape[-2:])

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, lmax={self.lmax}, num_heads={self.num_heads}, "
            f"fused={self.fused}"
        )


def _append(x: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
    """Concatenate ``x`` [..., S, a] and ``constant`` [S, b]."""
    return torch.cat((x, constant.to(x.dtype).expand(*x.shape[:-1], -1)), dim=-1)
