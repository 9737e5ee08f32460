"""Edges of many molecules at once: they never move, so they are found once."""

from __future__ import annotations

import numpy as np

from est_ocp.data.qm9_molecules import Molecules, ragged_range

_CHUNK = 4096


def radius_edges(molecules: Molecules, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all ordered pairs of different atoms of a molecule nearer than a cutoff.

    Parameters
    ----------
    molecules : Molecules
    cutoff : float
        Angstrom.

    Returns
    -------
    source, target : ndarray [E], uint8
        Numbers of the atoms in their molecule; by molecule, then target, then source.
    nedges : ndarray [M], int64
    """
    # Molecules of one size make one dense array of distances without padding.
    order = np.argsort(molecules.natoms, kind="stable")
    sizes = molecules.natoms[order].astype(np.int64)
    atom_starts = np.cumsum(molecules.natoms, dtype=np.int64) - molecules.natoms
    nedges = np.zeros(len(molecules), dtype=np.int64)
    found = []
    for size in np.unique(sizes):
        members = order[sizes == size]
        for start in range(0, len(members), _CHUNK):
            chosen = members[start : start + _CHUNK]
            pos = molecules.pos[atom_starts[chosen][:, None] + np.arange(size)]
            square = ((pos[:, :, None] - pos[:, None]) ** 2).sum(-1)
            near = (square <= cutoff**2) & ~np.eye(size, dtype=bool)
            _, target, source = np.nonzero(near)
            nedges[chosen] = near.sum((1, 2))
            found.append((chosen, source.astype(np.uint8), target.astype(np.uint8)))
    starts = np.cumsum(nedges) - nedges
    sources, targets = np.empty((2, int(nedges.sum())), dtype=np.uint8)
    for chosen, source, target in found:
        places = ragged_range(starts[chosen], nedges[chosen])
        sources[places], targets[places] = source, target
    return sources, targets, nedges
