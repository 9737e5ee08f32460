"""Attention on the sphere whose keys and values come from one direction: that of an edge."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn.coefficient_index import degree_of_coefficient
from est_ocp.nn.small_products import pad_points
from est_ocp.sphere import (
    ConstantBuffers,
    SphereRule,
    sphere_attention_bias,
    spherical_harmonics,
)


class CoefficientNorm(nn.Module):
    """Parameters of a :class:`est_ocp.nn.SphereNorm` of a feature given by coefficients.

    The norm is ``y = (x - mean_c x) / sqrt(variance + eps) * weight``, plus the bias in the
    scalars; the variance is the mean over the sphere and the channels of ``(x - mean_c x)^2``. It
    is never applied as such: whoever has the variance multiplies small tensors by the inverse
    deviation, and folds weight and bias into the linear map that follows.

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

    def inverse_deviation(self, variance: torch.Tensor) -> torch.Tensor:
        """Factor of the centred feature, of the shape of its ``variance``."""
        return torch.rsqrt(variance + self.eps)

    def bias_after(self, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Bias [H] of the norm and the map ``weight`` [H, D] with ``bias`` [H] behind it."""
        return bias + (weight * self.bias).sum(dim=1)

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
    value is the same at all points.

    Nor are there queries: ``Q_i . K_l = x_i . k_l`` with ``x`` the centred feature and the
    `probes` ``k_l``, to which the query's norm and map are applied transposed. Of them there are
    L a head, of the queries ``(L + 1)^2``. The caller multiplies both, see :meth:`vectors` and
    :meth:`functions`.

    Points are filled up to S', a multiple of four, for fast products; nothing attends to the
    added ones.

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

    Raises
    ------
    ConfigError
        If `num_heads` does not divide `channels` or there is no degree above 0.
    """

    def __init__(
        self,
        channels: int,
        lmax: int,
        rule: SphereRule,
        num_heads: int = 1,
        relative_orientation: bool = True,
        quadrature: bool = True,
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
        self.num_functions = lmax * num_heads
        self.scale = 1.0 / math.sqrt(self.head_channels)
        self.query_norm = CoefficientNorm(channels)
        self.context_norm = CoefficientNorm(channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.out = nn.Linear(channels, channels)
        degrees = torch.arange(lmax + 1, dtype=torch.float64)
        harmonics = pad_points(spherical_harmonics(rule.points, lmax).T)
        of_degree = degree_of_coefficient(lmax)[:, None] == torch.arange(1, lmax + 1)
        # [I, L * S']: harmonics of a direction to z_l at all points.
        axial = (of_degree[:, :, None] * harmonics[:, None]).flatten(1)
        bias = sphere_attention_bias(rule, self.scale, relative_orientation, quadrature)
        self.register_constant("mean_square", (2 * degrees + 1) / channels)
        self.register_constant("axial", axial)
        self.register_constant("point_bias", pad_points(pad_points(bias, -torch.inf).T).T)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights uniformly in ``+-1/sqrt(channels)``; the output bias starts at zero."""
        bound = 1.0 / math.sqrt(self.channels)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.zeros_(self.out.bias)

    def vectors(self, radial: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Vectors of channels behind logits and result.

        Parameters
        ----------
        radial : Tensor [E, L + 1, D]
            ``R_l``.

        Returns
        -------
        probes : Tensor [E, L * num_heads, D]
            By degree, then head. Their scalar products with the centred ``x_i``, times the
            inverse deviation of ``x``, are the logits' coefficients, but for what the norm's bias
            adds to the scalars: that is the sum of a probe's channels.
        coefficients : Tensor [E, L * num_heads, D]
            What multiplies the functions in the result, the output map included, centred.
        constant : Tensor [E, 1, D]
            The same of ``l = 0``: the part of the result that is equal at all points.
        """
        norm = self.context_norm
        with torch.autocast(radial.device.type, enabled=False):
            radial = radial.to(torch.promote_types(radial.dtype, norm.weight.dtype))
            centred = radial - radial.mean(dim=-1, keepdim=True)
            variance = centred.square().sum(dim=-1) @ self.mean_square
            factor = norm.inverse_deviation(variance).unsqueeze(-1) * norm.weight
            context = centred * factor.unsqueeze(1)
            to_probes, to_result = self._maps()
            of_scalars = to_result.sum(dim=0)
            bias = torch.addmv(self.out.bias - self.out.bias.mean(), of_scalars, norm.bias)
            maps = torch.cat((to_probes, to_result)).flatten(0, 1)
        scalars, rest = context.split((1, self.lmax), dim=1)
        constant = nn.functional.linear(scalars, of_scalars, bias)
        both = nn.functional.linear(rest, maps).unflatten(-1, (2, self.num_heads, -1))
        probes, coefficients = (part.flatten(1, 2) for part in both.unbind(2))
        return probes, coefficients, constant

    def _maps(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps [H, D, D] from the normalised context to probes and to centred coefficients."""
        query, key, value = (
            layer.weight.unflatten(0, (self.num_heads, -1))
            for layer in (self.query, self.key, self.value)
        )
        out = self.out.weight.unflatten(1, (self.num_heads, -1)).transpose(0, 1)
        to_result = torch.bmm(out, value)
        to_result = to_result - to_result.mean(dim=1, keepdim=True)
        product = torch.bmm(query.mT * self.scale, key)
        # Probes meet centred vectors alone, so their mean is free to carry the norm's bias.
        norm = self.query_norm
        surplus = torch.matmul((norm.bias - norm.weight) / self.channels, product)
        to_probes = torch.addcmul(surplus.unsqueeze(1), norm.weight[:, None], product)
        return to_probes, to_result

    def functions(self, logit_factors: torch.Tensor, edge_sh: torch.Tensor) -> torch.Tensor:
        """What attention makes of ``z_l`` for ``l >= 1``.

        Parameters
        ----------
        logit_factors : Tensor [E, L * num_heads, S']
            ``sum_i Y_i(p_s) (Q_i . K_l)``, by degree, then head; at least float32.
        edge_sh : Tensor [E, (L+1)**2]
            Harmonics of the edges' directions.

        Returns
        -------
        Tensor [E, L * num_heads, S']
            ``sum_t P_st z_l(t)``, by degree, then head. What it is at added points means nothing.
        """
        size = logit_factors.shape[-1]
        axial = (edge_sh.to(logit_factors.dtype) @ self.axial).unflatten(-1, (self.lmax, size))
        query = logit_factors.unflatten(1, (self.lmax, self.num_heads)).transpose(1, 2)
        axial = axial.unsqueeze(1).expand_as(query)
        functions = self._attend(query.flatten(0, 1), axial.flatten(0, 1))
        return functions.unflatten(0, query.shape[:2]).transpose(1, 2).flatten(1, 2)

    def _attend(self, query: torch.Tensor, axial: torch.Tensor) -> torch.Tensor:
        """Softmax-weighted means [E * heads, L, S'] of ``axial``, of the same shape."""
        logits = torch.baddbmm(self.point_bias, query.mT, axial)
        return torch.bmm(axial, torch.softmax(logits, dim=-1).mT)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, lmax={self.lmax}, num_heads={self.num_heads}"
