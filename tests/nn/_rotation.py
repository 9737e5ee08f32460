"""Rotated copies of steerable features, for tests of equivariance."""

from __future__ import annotations

from collections.abc import Callable

import torch

from est_ocp.nn.random_rotation import RandomRotation, rotate


def random_wigner(num: int, lmax: int, seed: int = 0) -> torch.Tensor:
    """Wigner matrices [num, I, I] of random rotations, float64."""
    generator = torch.Generator().manual_seed(seed)
    return RandomRotation(lmax).double()(num, generator=generator)


def rotation_error(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, lmax: int
) -> float:
    """Relative error of ``function(D x)`` against ``D function(x)``, one rotation a node."""
    wigner = random_wigner(len(x), lmax)
    with torch.no_grad():
        expected = rotate(function(x), wigner)
        actual = function(rotate(x, wigner))
    return ((actual - expected).norm() / expected.norm()).item()
