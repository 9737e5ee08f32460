"""All runs of the study, in the order in which they are made."""

from __future__ import annotations

from collections.abc import Iterator

from folds.training import Run

DEGREES = (1, 2, 3, 5, 10)
FOLDS = (2, 3, 5, 10, 100)
#: Rules of the sweep over S at L = 1.
SWEEP = (
    ("fibonacci", 12),
    ("fibonacci", 32),
    ("fibonacci", 128),
    ("lebedev", 14),
    ("lebedev", 26),
    ("lebedev", 50),
    ("lebedev", 110),
    ("lebedev", 350),
)
#: Lebedev rules of the layers that are measured as drawn, beside Fibonacci lattices.
DRAWN = (14, 26, 50, 110)


def table_points(lmax: int) -> int:
    """Points of the table's rules: the authors' default; at L = 10 ``2 (L + 1)^2``, half of it."""
    return 242 if lmax == 10 else (2 * lmax + 1) * (2 * lmax + 2)


def table(seeds: int, degrees: tuple[int, ...]) -> Iterator[Run]:
    """EST as in the paper's table: L against fold, given orientation."""
    for lmax in degrees:
        for fold in FOLDS:
            for seed in range(seeds):
                points = table_points(lmax)
                yield Run("table", "est", lmax, fold, seed, "fibonacci", points, "paper")


def tensor_products(seeds: int) -> Iterator[Run]:
    """The same for TFN and MACE-style layers."""
    for layer in ("tfn", "mace"):
        for lmax in DEGREES:
            for fold in FOLDS[:4]:
                for seed in range(seeds):
                    yield Run("table", layer, lmax, fold, seed)


def turned(seeds: int) -> Iterator[Run]:
    """Training in random orientations: EST of degree 1, TFN below, at and above the fold."""
    for seed in range(seeds):
        for fold in FOLDS:
            yield Run("turned", "est", 1, fold, seed, "fibonacci", 12, "paper", turned=True)
        for lmax in (1, 2, 3):
            yield Run("turned", "tfn", lmax, 3, seed, turned=True)
        yield Run("turned", "est", 3, 3, seed, "fibonacci", 56, "paper", turned=True)


def single_precision(seeds: int) -> Iterator[Run]:
    """The table's first row in float32, where rounding takes the place of vanishing differences."""
    for seed in range(seeds):
        for fold in FOLDS:
            yield Run("float32", "est", 1, fold, seed, "fibonacci", 12, "paper", "float32")


def unnormalised(seeds: int) -> Iterator[Run]:
    """The table without the norm between message and update."""
    for lmax in (1, 2):
        for fold in FOLDS:
            for seed in range(seeds):
                points = table_points(lmax)
                yield Run("no_norm", "est", lmax, fold, seed, "fibonacci", points, "no_norm")


def drawn(seeds: int) -> Iterator[Run]:
    """Layers as drawn: difference of the structures against the equivariance error."""
    for lmax in (1, 2):
        rules = [("fibonacci", table_points(lmax)), ("fibonacci", 128)]
        rules += [("lebedev", points) for points in DRAWN]
        for kind, points in rules:
            for fold in FOLDS:
                if lmax < fold < 100:
                    for seed in range(seeds):
                        yield Run("drawn", "est", lmax, fold, seed, kind, points, trained=False)


def sweep(seeds: int) -> Iterator[Run]:
    """Training at L = 1 with more and better points."""
    for kind, points in SWEEP:
        for fold in FOLDS:
            for seed in range(seeds):
                yield Run("sweep", "est", 1, fold, seed, kind, points)


def all_runs(seeds: int) -> list[Run]:
    """Every run; the table's with ``seeds`` seeds, others with a third as many."""
    few = max(1, seeds // 3)
    parts = (table(seeds, DEGREES[:4]), tensor_products(seeds), turned(few), sweep(few))
    parts += (single_precision(few), drawn(few), unnormalised(few), table(seeds, DEGREES[4:]))
    return [run for part in parts for run in part]
