"""How evenly points cover the sphere."""

from __future__ import annotations

import torch

from est_ocp.sphere.rule import SphereRule


def cap_discrepancy(rule: SphereRule) -> float:
    """L2 discrepancy over all spherical caps.

    The root mean square, over centres and integrated over heights in [-1, 1], of the difference
    between the weight of the points in a cap and the cap's share of the area. By Stolarsky's
    invariance principle it follows from the mean distance of the points:
    ``4 D^2 = 4/3 - sum_jk w_j w_k |p_j - p_k|``. It bounds the integration error of smooth
    functions on the sphere.

    Parameters
    ----------
    rule : SphereRule
        Points and weights.

    Returns
    -------
    float
        D, dimensionless.
    """
    distance = torch.cdist(rule.points, rule.points, compute_mode="donot_use_mm_for_euclid_dist")
    mean = float(rule.weights @ distance @ rule.weights)
    return (max(0.0, 4 / 3 - mean) / 4) ** 0.5
