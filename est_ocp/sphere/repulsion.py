"""Points spread by pairwise Coulomb repulsion ("w optim." in Table 5 of arXiv 2505.23086)."""

from __future__ import annotations

import torch
from torch import Tensor


def coulomb_energy(points: Tensor) -> Tensor:
    """Energy ``sum_{i<j} 1 / |p_i - p_j|`` of points [S, 3]; a scalar."""
    return _energy_and_force(points)[0]


def repulsed_points(points: Tensor, max_steps: int = 3000, tolerance: float = 1e-7) -> Tensor:
    """Move points down their Coulomb energy, projecting them on the sphere after each step.

    Each step moves along the tangential part of ``sum_j (p_i - p_j) / |p_i - p_j|^3``. The step
    grows while the energy falls and is halved, the move taken back, when it would rise. Any
    symmetry of the starting points is kept up to rounding.

    Parameters
    ----------
    points : Tensor
        Distinct unit vectors, ``[S, 3]``, float64.
    max_steps : int
        Largest number of steps.
    tolerance : float
        Stop when no tangential force exceeds this fraction of the mean radial force.

    Returns
    -------
    Tensor
        Unit vectors, ``[S, 3]``, of no higher energy.
    """
    size = len(points)
    if size < 2:
        return points.clone()
    energy, force = _energy_and_force(points)
    # the radial force is S/2 on average and the spacing about sqrt(4 pi / S)
    step = 0.1 / size**1.5
    for _ in range(max_steps):
        tangential = force - (force * points).sum(dim=-1, keepdim=True) * points
        if tangential.norm(dim=-1).max() < tolerance * size / 2:
            break
        moved = points + step * tangential
        moved = moved / moved.norm(dim=-1, keepdim=True)
        moved_energy, moved_force = _energy_and_force(moved)
        if moved_energy <= energy:
            points, energy, force = moved, moved_energy, moved_force
            step *= 1.1
        else:
            step *= 0.5
    return points.clone()


def _energy_and_force(points: Tensor) -> tuple[Tensor, Tensor]:
    """Coulomb energy and force on each point."""
    square = 2 - 2 * (points @ points.T)
    square.fill_diagonal_(torch.inf)
    # coincident points would otherwise give a tiny negative square, and NaN
    inverse = square.clamp(min=1e-30).rsqrt()
    cube = inverse * inverse * inverse
    force = cube.sum(dim=1, keepdim=True) * points - cube @ points
    return inverse.sum() / 2, force
