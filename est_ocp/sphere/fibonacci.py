"""Fibonacci lattices (arXiv 2505.23086, section 3.2.2, eq. 11)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from est_ocp.errors import ConfigError

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2


def fibonacci_points(num_points: int) -> Tensor:
    """Lattice with half offset: ``z_s = 1 - (2s - 1)/S``, ``phi_s = 2 pi s / golden``.

    Parameters
    ----------
    num_points : int
        S, at least 1.

    Returns
    -------
    Tensor
        Unit vectors, ``[S, 3]``, float64.
    """
    index = torch.arange(1, num_points + 1, dtype=torch.float64, device="cpu")
    return _spiral(1 - (2 * index - 1) / num_points, index)


def fibonacci_pole_points(num_points: int) -> Tensor:
    """Lattice with its ends on the poles: ``z_s = 1 - 2(s - 1)/(S - 1)``.

    The variant of the authors' code, for reproduction only: it covers the polar caps unevenly
    and integrates worse than the half offset.

    Parameters
    ----------
    num_points : int
        S, at least 2.

    Returns
    -------
    Tensor
        Unit vectors, ``[S, 3]``, float64.

    Raises
    ------
    ConfigError
        If fewer than two points are asked for.
    """
    if num_points < 2:
        raise ConfigError("rule 'fibonacci_poles' needs num_points of at least 2")
    index = torch.arange(1, num_points + 1, dtype=torch.float64, device="cpu")
    return _spiral(1 - 2 * (index - 1) / (num_points - 1), index)


def _spiral(height: Tensor, index: Tensor) -> Tensor:
    angle = 2 * math.pi * index / GOLDEN_RATIO
    radius = (1 - height.square()).clamp(min=0).sqrt()
    points = torch.stack([radius * angle.cos(), radius * angle.sin(), height], dim=-1)
    return points / points.norm(dim=-1, keepdim=True)
