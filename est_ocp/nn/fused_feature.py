"""Features on the sphere kept as products, with fused kernels for all that happens at points."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from est_ocp.nn.autocast import autocast_dtype
from est_ocp.nn.factored_feature import project
from est_ocp.nn.sphere_norm import SphereNorm
from est_ocp.nn.spherical_attention import SphericalAttention
from est_ocp.nn.spherical_expert import SphericalExperts
from est_ocp.nn.triton.support import can_fuse, functions_fit, shared_memory
from est_ocp.sphere import SphericalTransform


class FusedFeature(NamedTuple):
    """Feature behind spherical attention, at the points ``s`` of the sphere.

    ``f_s = sum_i Y_si (factor coefficients_i + [i = 0] constant) + sum_j functions_sj own_j``:
    what :class:`est_ocp.nn.factored_feature.FactoredFeature` is, in the parts that the kernels
    read. They round where those of :class:`SphericalAttention` and :class:`SphericalExperts` at
    points do, and keep products of constants in two numbers of half precision, or in TF32.

    Attributes
    ----------
    coefficients : Tensor [N, I, C]
        Of the feature before the attention, up to `factor`.
    factor : float
    constant : Tensor [N, C]
    own : Tensor [N, J, C]
        Vectors of the functions.
    functions : Tensor [N, S, J]
        Softmax-weighted means of the harmonics, without the constant one.
    """

    coefficients: torch.Tensor
    factor: float
    constant: torch.Tensor
    own: torch.Tensor
    functions: torch.Tensor

    def apply_experts(
        self,
        norm: SphereNorm,
        experts: SphericalExperts,
        gate: torch.Tensor,
        transform: SphericalTransform,
    ) -> torch.Tensor:
        """As of :class:`est_ocp.nn.factored_feature.FactoredFeature`."""
        # Imported here, as Triton is there on GPUs alone.
        from est_ocp.nn.triton.silu_on_functions import silu_on_functions

        at_points = (transform.to_points_matrix, norm.point_weights.flatten())
        rows = _normalise(norm, at_points, *self)
        rows = nn.functional.linear(rows, experts.weight_in.flatten(0, 1))
        hidden = silu_on_functions(
            rows,
            self.functions,
            experts.bias_in.flatten(),
            transform.to_points_matrix,
            transform.from_points_matrix,
            experts.num_experts,
        )
        return project(hidden, experts, gate, transform)


def can_fuse_feature(
    attention: SphericalAttention, x: torch.Tensor, transform: SphericalTransform
) -> bool:
    """Whether the kernels apply to coefficients ``x`` [N, I, C]."""
    dtype = autocast_dtype(x)
    num_in = x.shape[1]
    return (
        isinstance(attention.norm, SphereNorm)
        and can_fuse(x, dtype)
        and functions_fit(
            transform.num_points,
            num_in,
            attention.num_heads * (num_in - 1),
            x.shape[2],
            dtype,
            shared_memory(x.device),
        )
    )


def attend(
    attention: SphericalAttention,
    coefficients: torch.Tensor,
    transform: SphericalTransform,
    factor: float,
) -> FusedFeature:
    """As :func:`est_ocp.nn.factored_feature.attend` of ``factor`` times the coefficients."""
    from est_ocp.nn.triton.attention_functions import attention_functions

    num_nodes, num_in, channels = coefficients.shape
    none = coefficients.new_empty(num_nodes, 0, channels)
    functions = coefficients.new_empty(num_nodes, num_in, 0)
    squares = (transform.square_matrix, transform.square_weights)
    rows = _normalise(attention.norm, squares, coefficients, factor, None, none, functions)
    query, key, value = attention.qkv(rows).split(channels, dim=-1)
    functions = attention_functions(
        query,
        key,
        transform.to_points_matrix,
        attention.point_bias,
        attention.num_heads,
        attention.scale,
    )
    constant, own = _map_out(attention, value)
    return FusedFeature(coefficients, factor, constant, own, functions)


def _map_out(attention: SphericalAttention, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Constant [N, C] and vectors [N, heads * (I - 1), C] of the output map of every head."""
    weight = attention.out.weight.unflatten(-1, (attention.num_heads, -1)).unbind(1)
    values = value.unflatten(-1, (attention.num_heads, -1)).unbind(2)
    parts = [
        nn.functional.linear(v, w).split((1, value.shape[1] - 1), dim=1)
        for v, w in zip(values, weight, strict=True)
    ]
    constant = sum(first for first, _ in parts).squeeze(1)
    if attention.out.bias is not None:
        constant = constant + attention.out.bias
    own = [rest for _, rest in parts]
    return constant, own[0] if len(own) == 1 else torch.cat(own, dim=1)


def _normalise(
    norm: SphereNorm,
    squares: tuple[torch.Tensor, torch.Tensor],
    coefficients: torch.Tensor,
    factor: float,
    constant: torch.Tensor | None,
    own: torch.Tensor,
    functions: torch.Tensor,
) -> torch.Tensor:
    """Vectors [N, I + J, C] of the normalised feature, in autocast's type.

    `squares` are a matrix [K, I] and weights [K] of the mean square over the sphere.
    """
    from est_ocp.nn.triton.functions_norm import functions_norm

    matrix, weights = squares
    rows, _, _ = functions_norm(
        coefficients,
        constant,
        own,
        functions,
        matrix,
        weights,
        norm.weight,
        norm.bias,
        factor,
        norm.eps,
        autocast_dtype(coefficients),
    )
    return rows
