"""`make_rule`: every point set of the package by name."""

from __future__ import annotations

from collections.abc import Sequence


from est_ocp.errors import ConfigError
from est_ocp.sphere.fibonacci import fibonacci_points, fibonacci_pole_points
from est_ocp.sphere.lebedev import LEBEDEV_DEGREES, lebedev_points
from est_ocp.sphere.product_grid import product_points
from est_ocp.sphere.repulsion import repulsed_points
from est_ocp.sphere.rule import SphereRule

KINDS = ("fibonacci", "fibonacci_poles", "repulsion", "lebedev", "product")


def make_rule(
    kind: str, num_points: int | Sequence[int] | None = None, lmax: int | None = None
) -> SphereRule:
    if kind == "product":
        points, weights = product_points(*num_points)
        name = f"product-{num_points[0]}x{num_points[1]}"
        return SphereRule.from_points(name, points, weights)
    if num_points is None:
        num_points = (2 * lmax + 1) * (2 * lmax + 2)
        if kind == "lebedev":
            num_points = min(s for s in LEBEDEV_DEGREES if s >= num_points)
    name = f"{kind}-{num_points}"
    if kind == "lebedev":
        return SphereRule.from_points(name, *lebedev_points(num_points))
    if kind == "fibonacci":
        return SphereRule.from_points(name, fibonacci_points(num_points))
    if kind == "fibonacci_poles":
        return SphereRule.from_points(name, fibonacci_pole_points(num_points))
    if kind == "repulsion":
        return SphereRule.from_points(name, repulsed_points(fibonacci_points(num_points)))
    raise ConfigError(f"unknown kind of sphere rule '{kind}'; choose one of {', '.join(KINDS)}")
