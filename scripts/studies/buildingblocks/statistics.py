"""Means over seeds, and differences between variants that are beyond the noise or not.

Errors are compared as logarithms, seed by seed: the same seed has the same data order. All
differences together give one standard deviation of a seed's difference, which three seeds alone
would hardly know; a difference counts only beyond Student's bound for all comparisons of the page
at once (Bonferroni), at 95%.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


def by_variant(rows: Iterable[Mapping[str, str]], column: str) -> dict[str, dict[int, float]]:
    """Variant to seed to figure."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["variant"], {})[int(row["seed"])] = float(row[column])
    return found


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """Mean and its standard error; not a number for a single value."""
    array = np.array(list(values))
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else math.nan
    return float(array.mean()), float(error)


@dataclass(frozen=True)
class Comparison:
    """One variant against its reference.

    Attributes
    ----------
    change : float
        Mean difference of the logarithms of the errors.
    noise : float
        Half width of its interval, for all comparisons at once; infinite if it is not known.
    seeds : int
        That both have.
    """

    change: float
    noise: float
    seeds: int

    @property
    def percent(self) -> float:
        """Change in percent."""
        return 100 * math.expm1(self.change)

    @property
    def verdict(self) -> str:
        """``lower``, ``higher`` or ``inside the noise``."""
        if not abs(self.change) > self.noise:
            return "inside the noise"
        return "lower" if self.change < 0 else "higher"


def compare(
    errors: Mapping[str, Mapping[int, float]], pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Comparison]:
    """Compare variants with their references.

    Parameters
    ----------
    errors : mapping
        Of :func:`by_variant`.
    pairs : sequence of (variant, reference)

    Returns
    -------
    dict
        Of the pairs that have a seed in common.
    """
    differences = {}
    for variant, reference in pairs:
        common = sorted(errors.get(variant, {}).keys() & errors.get(reference, {}).keys())
        if variant != reference and common:
            differences[variant, reference] = np.array(
                [math.log(errors[variant][s] / errors[reference][s]) for s in common]
            )
    freedom = sum(len(d) - 1 for d in differences.values())
    bound = math.inf
    if freedom > 0:
        from scipy.stats import t

        squares = sum(float(((d - d.mean()) ** 2).sum()) for d in differences.values())
        quantile = 1 - (1 - CONFIDENCE) / (2 * len(differences))
        bound = float(t.ppf(quantile, freedom)) * math.sqrt(squares / freedom)
    return {
        pair: Comparison(float(d.mean()), bound / math.sqrt(len(d)), len(d))
        for pair, d in differences.items()
    }
