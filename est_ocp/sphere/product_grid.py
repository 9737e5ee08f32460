"""The latitude-longitude grid of e3nn's ``ToS2Grid`` and ``FromS2Grid``."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def product_points(num_beta: int, num_alpha: int) -> tuple[Tensor, Tensor]:
    """Points of e3nn's grid with the weights of its inverse transform.

    The polar angles, from the y axis, are ``(i + 1/2) pi / num_beta``; their weights are those of
    Fejér's first rule, exact for polynomials of degree below ``num_beta``. The azimuths are
    ``2 pi j / num_alpha``.

    Parameters
    ----------
    num_beta, num_alpha : int
        Number of polar angles and of azimuths.

    Returns
    -------
    points : Tensor
        Unit vectors, ``[num_beta * num_alpha, 3]``, float64, azimuth fastest.
    weights : Tensor
        ``[num_beta * num_alpha]``, float64, sum 1.
    """
    steps = torch.arange(num_beta, dtype=torch.float64, device="cpu")
    beta = (steps + 0.5) * math.pi / num_beta
    order = torch.arange(1, num_beta // 2 + 1, dtype=torch.float64, device="cpu")
    series = torch.cos(2 * beta[:, None] * order) / (4 * order.square() - 1)
    beta_weights = (1 - 2 * series.sum(dim=-1)) / num_beta

    alpha = torch.arange(num_alpha, dtype=torch.float64, device="cpu") * 2 * math.pi / num_alpha
    sin_beta, cos_beta = beta.sin()[:, None], beta.cos()[:, None]
    points = torch.stack(
        [sin_beta * alpha.sin(), cos_beta.expand(-1, num_alpha), sin_beta * alpha.cos()], dim=-1
    ).reshape(-1, 3)
    weights = (beta_weights[:, None] / num_alpha).expand(-1, num_alpha).reshape(-1)
    return points / points.norm(dim=-1, keepdim=True), weights / weights.sum()
