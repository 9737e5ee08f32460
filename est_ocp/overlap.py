"""Atoms at the same place: an error of the data that no loss would show."""

from __future__ import annotations

import numpy as np
from ase.geometry import complete_cell
from scipy.spatial import cKDTree

#: fairchem's neighbour search makes no edge between atoms closer than this, Angstrom.
SAME_PLACE = 0.01

#: Up to as many atoms, comparing all pairs by one small product is faster than a tree.
_FEW = 256


def find_overlap(
    pos: np.ndarray, cell: np.ndarray, pbc: np.ndarray
) -> tuple[int, int, float] | None:
    """Find two atoms closer than :data:`SAME_PLACE`, periodic images included.

    They would have no edge between them, so that a model could not tell that they overlap.

    Parameters
    ----------
    pos : array [N, 3]
        Positions, Angstrom, finite; they need not lie in the cell.
    cell : array [3, 3]
        Lattice vectors as rows, Angstrom; those of axes that are not periodic are not used.
    pbc : array [3], bool

    Returns
    -------
    tuple of int, int and float, or None
        The atoms' numbers and their distance, Angstrom.
    """
    if len(pos) < 2:
        return None
    periodic = np.asarray(pbc, dtype=bool)
    basis = complete_cell(np.where(periodic[:, None], np.asarray(cell, dtype=np.float64), 0.0))
    inverse = np.linalg.inv(basis)
    scaled = np.asarray(pos, dtype=np.float64) @ inverse
    # Not less than the largest change of scaled coordinates over that distance.
    reach = min(SAME_PLACE * np.sqrt((inverse * inverse).sum()), 0.49)
    if len(pos) <= _FEW and not _close_on_torus(scaled, reach):
        return None
    wrapped = np.where(periodic, scaled % 1.0, scaled)
    # The remainder of a small negative number can round to 1, outside the tree's box.
    wrapped[(wrapped >= 1.0) & periodic] = 0.0
    tree = cKDTree(wrapped, boxsize=np.where(periodic, 1.0, 0.0))
    pairs = tree.query_pairs(reach, output_type="ndarray")
    if not len(pairs):
        return None
    apart = wrapped[pairs[:, 0]] - wrapped[pairs[:, 1]]
    distance = np.linalg.norm((apart - np.where(periodic, np.rint(apart), 0.0)) @ basis, axis=1)
    nearest = int(distance.argmin())
    if distance[nearest] >= SAME_PLACE:
        return None
    first, second = sorted(pairs[nearest].tolist())
    return first, second, float(distance[nearest])


def _close_on_torus(scaled: np.ndarray, reach: float) -> bool:
    """Whether two of the points [N, 3] are within ``reach``, or nearly, if all axes had period 1.

    That is so of all points that are near, whichever axes are periodic.
    """
    angles = 2.0 * np.pi * scaled
    circles = np.concatenate((np.cos(angles), np.sin(angles)), axis=1)
    # The sum of three cosines of differences, 3 on the diagonal; cos(x) >= 1 - x^2 / 2.
    least = 3.0 - 0.5 * (2.0 * np.pi * reach) ** 2 - 1e-9
    return np.count_nonzero(circles @ circles.T > least) > len(scaled)
