"""Point sets of the studies, and how unevenly each of them covers the sphere."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from est_ocp.sphere import SphereRule, make_rule
from est_ocp.sphere.legendre import harmonics_by_degree

#: Lebedev rules of these sizes exist; sets of equal weights have the same.
SIZES = (26, 50, 86, 146, 194, 350)
#: e3nn's grids ``(2 l + 2, 2 l + 1)`` nearest to them.
GRIDS = ((6, 5), (8, 7), (10, 9), (12, 11), (14, 13), (18, 17))
#: Above this degree harmonics add nothing to the smooth discrepancies.
HIGHEST_DEGREE = 48


@dataclass(frozen=True)
class PointSet:
    """One way to sample the sphere.

    Attributes
    ----------
    kind : str
        As of :func:`est_ocp.sphere.make_rule`.
    num_points : int or (int, int)
    quadrature : bool
        The points' weights stand in the softmax; they always do in the inverse transform.
    """

    kind: str
    num_points: int | tuple[int, int]
    quadrature: bool = True

    @property
    def name(self) -> str:
        """Kind, with what the softmax does on the grid."""
        if self.kind != "product":
            return self.kind
        return "product, weights" if self.quadrature else "product, plain softmax"

    @property
    def size(self) -> int:
        """Number of points S."""
        if isinstance(self.num_points, int):
            return self.num_points
        return self.num_points[0] * self.num_points[1]

    def rule(self) -> SphereRule:
        """Points and weights."""
        return make_rule(self.kind, self.num_points)

    def softmax_rule(self) -> SphereRule:
        """The points with the weights that the attention's integral gives them."""
        rule = self.rule()
        if self.quadrature:
            return rule
        equal = torch.full_like(rule.weights, 1.0 / rule.num_points)
        return dataclasses.replace(rule, weights=equal)


def ladder(sizes: tuple[int, ...] = SIZES, grids: tuple = GRIDS) -> list[PointSet]:
    """All kinds at all sizes, plain softmax on e3nn's grid included."""
    kinds = ("fibonacci_poles", "fibonacci", "repulsion", "design", "lebedev")
    sets = [PointSet(kind, size) for kind in kinds for size in sizes]
    return sets + [
        PointSet("product", grid, quadrature) for quadrature in (True, False) for grid in grids
    ]


def smooth_discrepancies(rule: SphereRule, ratios: torch.Tensor) -> torch.Tensor:
    """Largest integration errors over balls of analytic functions.

    ``D_r^2 = sum_{l >= 1} r^l sum_m (sum_s w_s Y_lm(p_s))^2`` is the largest error of the rule
    among functions with ``sum_lm r^-l f_lm^2 <= 1``, whose coefficients thus fall like
    ``r^(l/2)``: the discrepancy of the reproducing kernel ``sum_l (2l+1) r^l P_l``. The cap
    discrepancy is of the same form with coefficients that fall like ``l^-3``.

    Parameters
    ----------
    rule : SphereRule
    ratios : Tensor [R]
        ``r`` between 0 and 1, float64.

    Returns
    -------
    Tensor [R]
        ``D_r``, dimensionless.
    """
    squares = torch.stack(
        [
            (rule.weights @ values).square().sum()
            for values in harmonics_by_degree(rule.points, HIGHEST_DEGREE)
        ]
    )
    degrees = torch.arange(1, HIGHEST_DEGREE + 1, dtype=torch.float64)
    return (ratios[:, None] ** degrees @ squares[1:]).sqrt()
