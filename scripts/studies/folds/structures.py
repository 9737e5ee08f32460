"""Structures with k-fold symmetry about an axis, and random orientations of them."""

from __future__ import annotations

import math

import torch

from est_ocp.nn.random_rotation import RandomRotation


def ring_pair(fold: int) -> torch.Tensor:
    """Directions to the neighbours of two centres, [2, fold, 3], float64.

    The neighbours of the first are a regular polygon in the plane of x and y; those of the second
    the same turned about z by half the angle between neighbours.
    """
    steps = torch.arange(fold, dtype=torch.float64)
    angles = 2 * math.pi / fold * torch.stack((steps, steps + 0.5))
    return torch.stack((angles.cos(), angles.sin(), torch.zeros_like(angles)), dim=-1)


class Orientations:
    """Random rotations of directions together with their matrices on features.

    Parameters
    ----------
    lmax : int
        Highest degree of the features.
    seed : int
        Of the rotations drawn.
    """

    def __init__(self, lmax: int, seed: int) -> None:
        self.rotation = RandomRotation(lmax).double()
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, number: int) -> torch.Tensor:
        """Draw Wigner matrices [number, (lmax+1)**2, (lmax+1)**2], float64."""
        return self.rotation(number, generator=self.generator)


def turn(directions: torch.Tensor, wigner: torch.Tensor) -> torch.Tensor:
    """Turn directions [G, fold, 3] by the rotations of ``wigner`` [G, I, I].

    The block of degree 1 is the rotation matrix: harmonics of degree 1 are (x, y, z).
    """
    return torch.einsum("gxy,gky->gkx", wigner[:, 1:4, 1:4], directions)


def turn_back(features: torch.Tensor, wigner: torch.Tensor) -> torch.Tensor:
    """Features [G, I, C] of turned structures in the frame of the unturned ones."""
    return torch.einsum("gji,gjc->gic", wigner.to(features.dtype), features)
