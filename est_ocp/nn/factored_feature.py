"""Features on the sphere as products of few functions with few vectors of channels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from est_ocp.nn.expert_products import expert_products
from est_ocp.nn.recompute import recomputed
from est_ocp.nn.sphere_norm import NoNorm
from est_ocp.nn.spherical_attention import SphericalAttention
from est_ocp.nn.spherical_expert import SphericalExperts
from est_ocp.sphere import SphericalTransform

#: Functions are filled up with zeros to a multiple of this, as fast matrix products want them.
ALIGNMENT = 4


class FactoredFeature(NamedTuple):
    """Feature ``f_s = sum_j basis_sj rows_j`` at the points of the sphere.

    Attributes
    ----------
    basis : Tensor [N or 1, S, J]
        Functions at the points; the first one is the constant one.
    rows : Tensor [N, J, C]
    """

    basis: torch.Tensor
    rows: torch.Tensor

    def apply_experts(
        self,
        norm: nn.Module,
        experts: SphericalExperts,
        gate: torch.Tensor,
        transform: SphericalTransform,
    ) -> torch.Tensor:
        """Coefficients [N, I, C] of the gate-weighted sum of all experts of the normalised feature.

        First map on the rows, activation at the points, second map and gate on coefficients: only
        the activation's input and result have a row a point.

        Parameters
        ----------
        norm : SphereNorm or NoNorm
        experts : SphericalExperts
        gate : Tensor [N, E]
            Weights of the experts.
        transform : SphericalTransform
            Its way back.
        """
        rows = normalise(norm, self)
        rows = nn.functional.linear(rows, experts.weight_in.flatten(0, 1))
        rows = _add_constant(rows, experts.bias_in.flatten().to(rows.dtype))
        basis = self.basis.to(rows.dtype)
        if experts.recompute:
            hidden = recomputed(_activate, basis, rows, transform)
        else:
            hidden = _activate(basis, rows, transform)
        hidden = hidden.unflatten(-1, (experts.num_experts, -1)).permute(2, 0, 1, 3)
        return project(hidden, experts, gate, transform)


def num_functions(num_coefficients: int, num_heads: int) -> int:
    """Functions of a feature behind the attention: harmonics, and all but one of each head."""
    return num_coefficients + num_heads * (num_coefficients - 1)


def normalise(norm: nn.Module, f: FactoredFeature) -> torch.Tensor:
    """Rows of the normalised feature, of the same basis, in at least float32.

    With ``G_ab = sum_s w_s basis_sa basis_sb`` the mean over the sphere of a squared feature is
    ``sum_ab G_ab (rows rows^T)_ab``, so the norm over the sphere needs no values at points.

    Parameters
    ----------
    norm : SphereNorm or NoNorm
    f : FactoredFeature
    """
    if isinstance(norm, NoNorm):
        return f.rows
    with torch.autocast(f.rows.device.type, enabled=False):
        precise = torch.promote_types(f.rows.dtype, norm.weight.dtype)
        rows, basis = f.rows.to(precise), f.basis.to(precise)
        centred = rows - rows.mean(dim=-1, keepdim=True)
        gram = torch.matmul((basis * norm.point_weights).mT, basis)
        products = torch.bmm(centred, centred.mT)
        variance = (gram * products).sum(dim=(1, 2)) / rows.shape[-1]
        rows = centred * (torch.rsqrt(variance + norm.eps)[:, None, None] * norm.weight)
        return _add_constant(rows, norm.bias)


def attend(
    attention: SphericalAttention, coefficients: torch.Tensor, transform: SphericalTransform
) -> FactoredFeature:
    r"""Feature with spherical attention's result added, for a band-limited feature.

    Norm and linear maps act on channels, so queries, keys and values are band-limited too:
    ``q_s . k_t = sum_ij Y_si (Q_i . K_j) Y_tj``, ``sum_t P_st v_t = sum_i (P Y)_si V_i``. The same
    numbers as of :class:`SphericalAttention`, from ``(L+1)^2`` rows instead of S points; of
    ``P Y`` the first function is the constant one.

    Parameters
    ----------
    attention : SphericalAttention
        With a norm over the whole sphere, or none.
    coefficients : Tensor [N, I, C]
        Of the feature.
    transform : SphericalTransform
    """
    harmonics = transform.to_points_matrix
    plain = FactoredFeature(harmonics.unsqueeze(0), coefficients)
    rows = normalise(attention.norm, plain)
    parts = attention.qkv(rows).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = parts.permute(2, 0, 3, 1, 4)
    with torch.autocast(rows.device.type, enabled=False):
        precise = torch.promote_types(query.dtype, harmonics.dtype)
        overlap = torch.matmul(query.to(precise), key.to(precise).mT) * attention.scale
        logits = torch.matmul(torch.matmul(harmonics, overlap), harmonics.mT)
        probabilities = torch.softmax(logits + attention.point_bias, dim=-1)
        functions = torch.matmul(probabilities, harmonics[:, 1:])
    functions = functions.transpose(1, 2).flatten(2)
    weight = attention.out.weight.unflatten(-1, (attention.num_heads, -1))
    vectors = torch.einsum("nhid,ohd->nhio", value, weight.to(value.dtype))
    constant = vectors[:, :, 0].sum(dim=1)
    if attention.out.bias is not None:
        constant = constant + attention.out.bias
    vectors = vectors[:, :, 1:].flatten(1, 2).to(coefficients.dtype)
    missing = -(coefficients.shape[1] + vectors.shape[1]) % ALIGNMENT
    num_nodes, num_points = functions.shape[:2]
    basis = torch.cat(
        (
            harmonics.expand(num_nodes, -1, -1),
            functions,
            functions.new_zeros(num_nodes, num_points, missing),
        ),
        dim=-1,
    )
    empty = vectors.new_zeros(num_nodes, missing, vectors.shape[-1])
    rows = (coefficients[:, :1] + constant.unsqueeze(1).to(coefficients.dtype), coefficients[:, 1:])
    return FactoredFeature(basis, torch.cat((*rows, vectors, empty), dim=1))


def project(
    hidden: torch.Tensor,
    experts: SphericalExperts,
    gate: torch.Tensor,
    transform: SphericalTransform,
) -> torch.Tensor:
    """Second map of the experts and their weighted sum, on coefficients.

    Parameters
    ----------
    hidden : Tensor [E, N, I, H]
        Coefficients of the activations.
    experts : SphericalExperts
    gate : Tensor [N, E]
    transform : SphericalTransform

    Returns
    -------
    Tensor [N, I, C]
    """
    parts = expert_products(hidden, experts.weight_out)
    out = (parts * gate.T[:, :, None, None]).sum(dim=0).to(parts.dtype)
    if experts.bias_out is None:
        return out
    # What a constant becomes on the way back: for most rules the scalar alone.
    constant = transform.from_points_matrix.sum(dim=1)
    bias = gate.to(experts.bias_out.dtype) @ experts.bias_out
    return out + (constant[:, None] * bias.unsqueeze(1)).to(out.dtype)


def _activate(
    basis: torch.Tensor, rows: torch.Tensor, transform: SphericalTransform
) -> torch.Tensor:
    return transform.from_points(nn.functional.silu(torch.bmm(basis, rows)))


def _add_constant(rows: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
    """Rows [N, J, C] of a feature with a constant [C] added at all points."""
    return rows + nn.functional.pad(constant[None], (0, 0, 0, rows.shape[1] - 1))
