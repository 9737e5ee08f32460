"""Rotations and their matrices on steerable features, float64."""

from __future__ import annotations

import torch

from est_ocp.sphere import spherical_harmonics


def random_rotation(seed: int = 0) -> torch.Tensor:
    """A proper rotation, float64 [3, 3]."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(matrix)
    return rotation * torch.det(rotation)


def wigner(rotation: torch.Tensor, lmax: int) -> torch.Tensor:
    """Matrix ``D`` with ``Y(R p) = D Y(p)`` on degrees 0..lmax, float64.

    Solved from harmonics at random points: e3nn's own matrices have float32 errors of 1e-7 unless
    the default type is float64.
    """
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    points = points / points.norm(dim=1, keepdim=True)
    before, after = (spherical_harmonics(p, lmax) for p in (points, points @ rotation.T))
    return torch.linalg.lstsq(before, after).solution.T


def rotate(x: torch.Tensor, rotation: torch.Tensor, lmax: int) -> torch.Tensor:
    """Rotate features [N, (lmax+1)**2, C]."""
    return torch.einsum("ij,njc->nic", wigner(rotation, lmax), x)
