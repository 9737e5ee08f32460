"""Lebedev rules: octahedral symmetry, unequal weights, exact to a high degree."""

from __future__ import annotations

import torch
from scipy.integrate import lebedev_rule
from torch import Tensor

from est_ocp.errors import ConfigError

#: Number of points -> degree, for the rules whose weights are all positive. The rules of 74, 230
#: and 266 points have negative weights, which have no logarithm to add to attention logits.
LEBEDEV_DEGREES: dict[int, int] = {
    6: 3, 14: 5, 26: 7, 38: 9, 50: 11, 86: 15, 110: 17, 146: 19, 170: 21, 194: 23, 302: 29,
    350: 31, 434: 35, 590: 41, 770: 47, 974: 53, 1202: 59, 1454: 65, 1730: 71, 2030: 77,
    2354: 83, 2702: 89, 3074: 95, 3470: 101, 3890: 107, 4334: 113, 4802: 119, 5294: 125,
    5810: 131,
}  # fmt: skip


def lebedev_points(num_points: int) -> tuple[Tensor, Tensor]:
    """Points and weights of the Lebedev rule with a given number of points.

    Parameters
    ----------
    num_points : int
        One of the keys of `LEBEDEV_DEGREES`.

    Returns
    -------
    points : Tensor
        Unit vectors, ``[S, 3]``, float64.
    weights : Tensor
        Positive, ``[S]``, float64, sum 1.

    Raises
    ------
    ConfigError
        If there is no such rule with positive weights.
    """
    if num_points not in LEBEDEV_DEGREES:
        sizes = ", ".join(str(size) for size in LEBEDEV_DEGREES)
        raise ConfigError(
            f"no Lebedev rule of {num_points} points with positive weights; choose one of {sizes}"
        )
    columns, weights = lebedev_rule(LEBEDEV_DEGREES[num_points])
    points = torch.from_numpy(columns.T.copy())
    weights = torch.from_numpy(weights.copy())
    return points / points.norm(dim=-1, keepdim=True), weights / weights.sum()
