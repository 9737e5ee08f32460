"""Point-wise nonlinearity on the sphere for features in the edge's frame."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from est_ocp.nn.coefficient_index import (
    check_degrees,
    degree_of_coefficient,
    num_frame_rows,
    order_major_index,
    truncation_rescale,
)
from est_ocp.nn.triton.support import can_fuse, matrices_fit
from est_ocp.sphere import ConstantBuffers, SphereRule, spherical_harmonics


def activation_matrices(
    rule: SphereRule, lmax: int, mmax: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices between coefficients and unit-variance values at the points of a rule.

    Degree ``l`` is divided by ``sqrt((2l+1)(lmax+1))`` on the way to the points, so that
    independent unit-variance coefficients give unit-variance values there: nonlinearities then
    work at the scale they are made for. The way back is the quadrature of the rule and multiplies
    by the same number. Degrees that lost orders (``mmax < lmax``) also get the factor of
    :func:`est_ocp.nn.coefficient_index.truncation_rescale`, both ways, as in EquiformerV2.

    Parameters
    ----------
    rule : SphereRule
        Points and weights.
    lmax : int
        Largest degree.
    mmax : int
        Largest order that the features keep.

    Returns
    -------
    to_points : Tensor [S, (lmax+1)**2], float64
    from_points : Tensor [(lmax+1)**2, S], float64
        In degree-major layout; rows with ``|m| > mmax`` have to be left out by the caller.
    """
    degrees = degree_of_coefficient(lmax)
    variance = math.sqrt(lmax + 1) * torch.sqrt(2.0 * degrees.double() + 1.0)
    rescale = truncation_rescale(lmax, mmax)[degrees]
    harmonics = spherical_harmonics(rule.points, lmax)
    to_points = harmonics * (rescale / variance)
    from_points = harmonics.t() * rule.weights * (rescale * variance).unsqueeze(1)
    return to_points, from_points


def plain_silu_on_points(
    scalars: torch.Tensor, x: torch.Tensor, to_points: torch.Tensor, from_points: torch.Tensor
) -> torch.Tensor:
    """Reference of :func:`est_ocp.nn.triton.silu_on_points.silu_on_points`, which runs everywhere.

    Parameters
    ----------
    scalars : Tensor [E, C]
        SiLU of them is the first row of the result.
    x : Tensor [E, R, C]
    to_points : Tensor [S, R]
    from_points : Tensor [R_out - 1, S]
        Used in the type of `x`.

    Returns
    -------
    Tensor [E, R_out, C]
    """
    values = functional.silu(torch.matmul(to_points.to(x.dtype), x))
    tensors = torch.matmul(from_points.to(values.dtype), values)
    gated = functional.silu(scalars).unsqueeze(1).to(tensors.dtype)
    return torch.cat((gated, tensors), dim=1)


class SeparableS2Activation(ConstantBuffers):
    """SiLU of the function on the sphere that the features describe, scalars apart.

    Features in the edge's frame (order-major rows) are evaluated at the points of a rule, SiLU
    acts on the values, and quadrature projects them back on degrees above 0. The scalars of the
    result are instead ``SiLU`` of separate inputs (EquiformerV2, arXiv 2306.12059, section 4.4).
    SiLU makes all degrees out of a few, and a finite rule folds the highest of them back on the
    kept ones: equivariance about the edge holds up to that aliasing, which falls quickly with the
    degree of the rule.

    The transforms run in the type of the features, so in bfloat16 under autocast: these are the
    largest tensors of the message block.

    Parameters
    ----------
    rule : SphereRule
    lmax, mmax : int
        Degrees and orders of the features.
    mmax_out : int, optional
        Orders of the result, default ``mmax``.
    fused : bool
        Use the fused kernel on GPUs, which never writes the values at the points to memory. It
        has no second derivative, and is not used where the matrices exceed a GPU's shared memory.

    Attributes
    ----------
    to_points_matrix : Tensor [S, R]
    from_points_matrix : Tensor [R_out - 1, S]
        Without the row of l = 0.
    """

    def __init__(
        self,
        rule: SphereRule,
        lmax: int,
        mmax: int,
        mmax_out: int | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__()
        check_degrees(lmax, mmax)
        self.rule_name = rule.name
        self.lmax = lmax
        self.mmax = mmax
        self.mmax_out = mmax if mmax_out is None else min(mmax, mmax_out)
        to_points, from_points = activation_matrices(rule, lmax, mmax)
        rows = order_major_index(lmax, mmax)
        rows_out = rows[1 : num_frame_rows(lmax, self.mmax_out)]
        self.fused = fused and matrices_fit(len(rows), len(rows_out) + 1, len(to_points))
        self.register_constant("to_points_matrix", to_points[:, rows])
        self.register_constant("from_points_matrix", from_points[rows_out])

    def forward(self, scalars: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Activate.

        Parameters
        ----------
        scalars : Tensor [E, C]
            Inputs of the scalars of the result.
        x : Tensor [E, R, C]
            Order-major rows.

        Returns
        -------
        Tensor [E, R_out, C]
        """
        if self.fused and can_fuse(x):
            from est_ocp.nn.triton.silu_on_points import silu_on_points

            return silu_on_points(scalars, x, self.to_points_matrix, self.from_points_matrix)
        return plain_silu_on_points(scalars, x, self.to_points_matrix, self.from_points_matrix)

    def extra_repr(self) -> str:
        return (
            f"rule={self.rule_name}, lmax={self.lmax}, mmax={self.mmax}, mmax_out={self.mmax_out}"
        )
