"""Directions of edges, as GotenNet's layers read them."""

from __future__ import annotations

import math

import torch

from est_ocp.sphere.legendre import harmonics_by_degree


def unit_harmonics(vec: torch.Tensor, distance: torch.Tensor, lmax: int) -> torch.Tensor:
    """Harmonics of the edges' directions, degrees 1 to lmax, each degree of length one.

    The project's harmonics have the squared length ``2l + 1``; GATA projects on the direction and
    needs unit vectors. Order and signs are e3nn's, which are GotenNet's. (For l > 2 the lengths in
    GotenNet's code are not one.)

    Parameters
    ----------
    vec : Tensor [E, 3]
        ``pos[source] - pos[target]``, Angstrom, float32 or float64.
    distance : Tensor [E]
        Lengths of ``vec``, positive.
    lmax : int

    Returns
    -------
    Tensor [E, (lmax+1)**2 - 1]
        In the type of ``vec``, also under autocast.
    """
    with torch.autocast(vec.device.type, enabled=False):
        degrees = list(harmonics_by_degree(vec / distance.unsqueeze(-1), lmax))[1:]
        return torch.cat([y / math.sqrt(y.shape[-1]) for y in degrees], dim=-1)
