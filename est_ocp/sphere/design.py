"""Spherical designs: equal weights, exact for all polynomials up to a high degree.

A design of degree t is a zero of ``E(p) = sum_{l=1..t} (2l+1)/S^2 sum_jk P_l(p_j . p_k)``
(Hardin and Sloane 1996; Sloan and Womersley 2009), which by the addition theorem is the sum of
squares ``sum_{l,m} r_lm^2`` with ``r_lm = (1/S) sum_s Y_lm(p_s)``. Minimising the residuals ``r``
by Levenberg-Marquardt converges quadratically to a zero, where minimising E by its gradient
stalls at ``E ~ 1e-16``, the rounding of its form in P_l, that is at residuals of 1e-8.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from est_ocp.errors import ConfigError
from est_ocp.sphere.fibonacci import fibonacci_points
from est_ocp.sphere.legendre import harmonics_by_degree
from est_ocp.sphere.repulsion import repulsed_points
from est_ocp.sphere.rule import minimum_angle
from est_ocp.sphere.symmetry import SymmetryGroup, symmetry_groups

#: Largest residual ``|r_lm|`` of an accepted design.
RESIDUAL = 1e-12
#: Starting points tried for each symmetry.
ATTEMPTS = 3
#: Conditions beyond the number of free coordinates that are still worth an attempt.
SPARE_CONDITIONS = 1


def design_points(num_points: int) -> Tensor:
    """Points of a spherical design of the highest degree found for their number.

    From repulsed starts without symmetry, in antipodal pairs, and in orbits of the tetrahedral and
    octahedral rotations, the degree is stepped down from the largest that the count of free
    coordinates allows (about ``sqrt(2 S) - 1``, a little more with symmetry) until a zero is
    found. Sets with points much closer than the mean spacing are passed over.

    Parameters
    ----------
    num_points : int
        S, at least 2.

    Returns
    -------
    Tensor
        Unit vectors, ``[S, 3]``, float64. Deterministic on one machine; across machines the
        rounding of linear algebra may lead to another design.

    Raises
    ------
    ConfigError
        If fewer than two points are asked for.
    """
    if num_points < 2:
        raise ConfigError("rule 'design' needs num_points of at least 2")
    groups = {
        group.name: (group, *split)
        for group in symmetry_groups()
        if (split := group.split(num_points)) is not None
    }
    bounds = {name: _largest_degree(group, free) for name, (group, free, _) in groups.items()}
    spacing = math.degrees(math.sqrt(8 * math.pi / math.sqrt(3) / num_points))
    for degree in range(max(bounds.values()), 0, -1):
        for name, (group, free, special) in groups.items():
            if bounds[name] < degree:
                continue
            for attempt in range(ATTEMPTS):
                start = _start(group, free, special, attempt)
                points = _solve(group, start, special, degree)
                if points is not None and minimum_angle(points) > spacing / 3:
                    return points
    return repulsed_points(fibonacci_points(num_points))


def _largest_degree(group: SymmetryGroup, free: int) -> int:
    """Degree up to which the conditions do not outnumber the free coordinates."""
    coordinates = 2 * free - group.free_rotations + SPARE_CONDITIONS
    conditions, degree = 0, 0
    while conditions <= coordinates:
        degree += 1
        conditions += group.num_invariants(degree)
    return degree - 1


def _start(group: SymmetryGroup, free: int, special: Tensor, attempt: int) -> Tensor:
    """Free points [F, 3] of a repulsed symmetric set; attempts differ in their randomness."""
    generator = torch.Generator(device="cpu").manual_seed(1000 * free + attempt)
    order = len(group.elements)
    total = order * free + len(special)
    lattice = fibonacci_points(total)
    if order == 1:
        chosen = lattice
    elif order == 2:
        chosen = lattice[:free]
    else:
        chosen = lattice[torch.randperm(total, generator=generator)[:free]]
    if attempt > 0 or order > 2:
        noise = torch.randn(free, 3, dtype=torch.float64, generator=generator)
        chosen = chosen + noise / math.sqrt(total)
    chosen = chosen / chosen.norm(dim=-1, keepdim=True)
    return repulsed_points(_expand(group, chosen, special), max_steps=300)[:free]


def _expand(group: SymmetryGroup, free: Tensor, special: Tensor) -> Tensor:
    """All points [S, 3]: images of the free points, element by element, then the special."""
    images = (free @ group.elements.mT).reshape(-1, 3)
    return torch.cat([images, special])


def _solve(
    group: SymmetryGroup, free: Tensor, special: Tensor, degree: int, max_steps: int = 125
) -> Tensor | None:
    """Levenberg-Marquardt on the residuals; None unless a zero is found."""
    degrees = [d for d in range(1, degree + 1) if group.num_invariants(d) > 0]
    if not degrees:
        return _expand(group, free, special)
    residual, jacobian = _residual(group, free, special, degrees)
    error = residual.square().sum()
    damping = 1e-3
    reference = error
    patience = 10 + len(free) // 4
    for count in range(max_steps):
        if count % patience == patience - 1:
            # an attempt that no longer halves its error is in a local minimum
            if error > reference / 2 and error > RESIDUAL:
                return None
            reference = error
        if residual.abs().max() < RESIDUAL / 100:
            break
        normal = jacobian.T @ jacobian
        scale = normal.diagonal().mean()
        gradient = jacobian.T @ residual
        normal.diagonal().add_(scale * damping)
        step = torch.linalg.solve(normal, -gradient).reshape(2, -1, 1)
        first, second = _tangents(free)
        moved = free + step[0] * first + step[1] * second
        moved = moved / moved.norm(dim=-1, keepdim=True)
        moved_residual, moved_jacobian = _residual(group, moved, special, degrees)
        moved_error = moved_residual.square().sum()
        if moved_error < error:
            free, residual, jacobian, error = moved, moved_residual, moved_jacobian, moved_error
            damping = max(damping / 10, 1e-12)
        elif residual.abs().max() < RESIDUAL:
            break
        else:
            damping *= 4
    return _expand(group, free, special) if residual.abs().max() < RESIDUAL else None


def _residual(
    group: SymmetryGroup, free: Tensor, special: Tensor, degrees: list[int]
) -> tuple[Tensor, Tensor]:
    """Residuals ``r`` [R] and their derivatives [R, 2F] along the tangents of the free points."""
    points = _expand(group, free, special)
    directions = [_expand(group, tangent, torch.zeros_like(special)) for tangent in _tangents(free)]

    def harmonics(at: Tensor) -> Tensor:
        values = list(harmonics_by_degree(at, degrees[-1]))
        return torch.cat([values[d] for d in degrees], dim=-1)

    twice = torch.stack([points, points])
    values, slopes = torch.func.jvp(harmonics, (twice,), (torch.stack(directions),))
    size, order, count = len(points), len(group.elements), len(free)
    # a free point moves all its images
    slopes = slopes[:, : order * count].reshape(2, order, count, -1).sum(dim=1)
    return values[0].sum(dim=0) / size, slopes.flatten(0, 1).T / size


def _tangents(points: Tensor) -> tuple[Tensor, Tensor]:
    """Two orthonormal tangents at each point, [F, 3] each."""
    axis = torch.zeros_like(points)
    axis.scatter_(1, points.abs().argmin(dim=1, keepdim=True), 1.0)
    first = torch.linalg.cross(points, axis)
    first = first / first.norm(dim=-1, keepdim=True)
    return first, torch.linalg.cross(points, first)
