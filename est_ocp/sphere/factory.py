"""`make_rule`: every point set of the package by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

from torch import Tensor

from est_ocp.errors import ConfigError
from est_ocp.sphere.cache import cached_points
from est_ocp.sphere.design import design_points
from est_ocp.sphere.fibonacci import fibonacci_points, fibonacci_pole_points
from est_ocp.sphere.lebedev import LEBEDEV_DEGREES, lebedev_points
from est_ocp.sphere.product_grid import product_points
from est_ocp.sphere.repulsion import repulsed_points
from est_ocp.sphere.rule import SphereRule

KINDS = ("fibonacci", "fibonacci_poles", "repulsion", "design", "lebedev", "product")


def repulsed_lattice(num_points: int) -> Tensor:
    """Fibonacci lattice with half offset after Coulomb repulsion, [S, 3], float64."""
    return repulsed_points(fibonacci_points(num_points))


#: Kinds that are computed by an optimisation, hence cached.
OPTIMISED: dict[str, Callable[[int], Tensor]] = {
    "repulsion": repulsed_lattice,
    "design": design_points,
}


def make_rule(
    kind: str, num_points: int | Sequence[int] | None = None, lmax: int | None = None
) -> SphereRule:
    """Make a point set with weights on the sphere.

    Parameters
    ----------
    kind : str
        - ``"fibonacci"``: lattice with half offset, equal weights;
        - ``"fibonacci_poles"``: the variant of the authors' code, for reproduction only;
        - ``"repulsion"``: the half-offset lattice after Coulomb repulsion;
        - ``"design"``: spherical design of the highest degree found, equal weights;
        - ``"lebedev"``: Lebedev rule, unequal positive weights;
        - ``"product"``: e3nn's latitude-longitude grid with its weights.
    num_points : int or (int, int), optional
        S; for ``"product"`` the pair ``(num_beta, num_alpha)``. By default, from ``lmax``,
        ``(2 lmax + 1)(2 lmax + 2)`` points; for ``"lebedev"`` the smallest rule with at least as
        many; for ``"product"`` the grid ``(2 lmax + 2, 2 lmax + 1)``.
    lmax : int, optional
        Highest degree of the features, only used for the default of ``num_points``.

    Returns
    -------
    SphereRule
        The rule, its degree measured.

    Raises
    ------
    ConfigError
        If the kind is unknown or has no rule of that size.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(KINDS)}"
        raise ConfigError(f"unknown kind of sphere rule '{kind}'; {hint}")
    if num_points is None:
        num_points = _default_size(kind, lmax)
    if kind == "product":
        num_beta, num_alpha = _checked_pair(num_points)
        name = f"product-{num_beta}x{num_alpha}"
        return SphereRule.from_points(name, *product_points(num_beta, num_alpha))
    if not _is_size(num_points):
        raise ConfigError(
            f"rule '{kind}' needs num_points as one positive integer, got {num_points}"
        )
    name = f"{kind}-{num_points}"
    if kind == "lebedev":
        return SphereRule.from_points(name, *lebedev_points(num_points))
    if kind == "fibonacci":
        return SphereRule.from_points(name, fibonacci_points(num_points))
    if kind == "fibonacci_poles":
        return SphereRule.from_points(name, fibonacci_pole_points(num_points))
    return SphereRule.from_points(name, cached_points(kind, num_points, OPTIMISED[kind]))


def _default_size(kind: str, lmax: int | None) -> int | tuple[int, int]:
    if lmax is None:
        raise ConfigError(f"sphere rule '{kind}': give num_points, or lmax to choose it")
    if kind == "product":
        return 2 * lmax + 2, 2 * lmax + 1
    size = (2 * lmax + 1) * (2 * lmax + 2)
    if kind == "lebedev":
        return next((known for known in LEBEDEV_DEGREES if known >= size), size)
    return size


def _checked_pair(num_points: int | Sequence[int]) -> tuple[int, int]:
    pair = () if isinstance(num_points, int | str) else tuple(num_points)
    if len(pair) != 2 or not all(_is_size(number) for number in pair):
        raise ConfigError(
            f"rule 'product' needs num_points as a pair (num_beta, num_alpha), got {num_points}"
        )
    return pair


def _is_size(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0
