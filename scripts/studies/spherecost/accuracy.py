"""Trainings with different numbers of points, at equal steps and at equal time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from buildingblocks.training import Protocol
from buildingblocks.variants import BY_NAME, Variant

#: Sizes of Lebedev rules; all integrate products of two features of degree 2.
SIZES = (14, 26, 50, 86, 146, 194)
#: The size whose time of `steps` steps the others get.
REFERENCE = 26
STEPS, TIME = "steps", "time"


def variant_of(points: int) -> Variant:
    """The base model of the study of building blocks with so many points."""
    rule = f"rule={{kind: lebedev, num_points: {points}}}"
    return Variant(f"S {points}", "sampling", str(points), (rule,), reference=f"S {REFERENCE}")


#: Beside them the host's own feed-forward, which has no points.
HOST = BY_NAME["host"]
VARIANTS = {points: variant_of(points) for points in SIZES}


def at_equal_steps(seeds: int) -> list[tuple[Variant, int, str, None]]:
    """Trainings of all sizes and of the host."""
    return [
        (variant, seed, STEPS, None)
        for variant in (*VARIANTS.values(), HOST)
        for seed in range(seeds)
    ]


def at_equal_time(
    rows: Iterable[Mapping[str, str]], seeds: int, protocol: Protocol
) -> list[tuple[Variant, int, str, float]]:
    """Trainings as long as those of the reference, whose own are in `rows`; else none."""
    times = [
        float(row["step_ms"]) * int(row["steps"]) / 1e3
        for row in rows
        if row["variant"] == f"S {REFERENCE}" and row["budget"] == STEPS
    ]
    if not times:
        return []
    seconds = sum(times) / len(times)
    return [
        (variant, seed, TIME, seconds)
        for points, variant in VARIANTS.items()
        if points != REFERENCE
        for seed in range(seeds)
    ]


def of_budget(rows: Sequence[Mapping[str, str]], budget: str) -> list[Mapping[str, str]]:
    """Rows of a budget; the reference's own are the same in both."""
    return [
        row
        for row in rows
        if row["budget"] == budget
        or (row["variant"] == f"S {REFERENCE}" and row["budget"] == STEPS)
    ]
