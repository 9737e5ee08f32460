"""Spherical harmonics of edges, differentiable and free of compiled scripts."""

from __future__ import annotations

import torch

from est_ocp.sphere.legendre import harmonics_by_degree


def edge_harmonics(vec: torch.Tensor, distance: torch.Tensor, lmax: int) -> torch.Tensor:
    """Harmonics of the edges' directions, degrees 0 to lmax.

    Parameters
    ----------
    vec : Tensor [E, 3]
        ``pos[source] - pos[target]``, Angstrom, float32 or float64.
    distance : Tensor [E]
        Lengths of ``vec``.
    lmax : int

    Returns
    -------
    Tensor [E, (lmax+1)**2]
        e3nn's convention, component normalised; same values as
        :func:`est_ocp.sphere.spherical_harmonics`, whose e3nn function is scripted.
    """
    with torch.autocast(vec.device.type, enabled=False):
        return torch.cat(list(harmonics_by_degree(vec / distance.unsqueeze(-1), lmax)), dim=-1)
