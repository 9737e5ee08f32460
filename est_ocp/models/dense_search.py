"""Neighbour search by all pairs of atoms and periodic images, in few steps.

fairchem's search sorts atoms into boxes: less arithmetic, but hundreds of small operations and
many waits of the host for the GPU, most of them once a structure. For the sizes that one batch
has, a GPU computes all distances in less time than it takes to start those operations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from ase.geometry import complete_cell

#: Distances that are computed at most; they and what is derived from them take about 1 GiB.
MAX_PAIRS = 2**26

#: Squared distances that differ by less tie, Angstrom^2: fairchem's tolerance.
TIE = 0.01


class Edges(NamedTuple):
    """Edges sorted by target.

    Attributes
    ----------
    index : Tensor [2, E], int64
        Row 0 sources, row 1 targets.
    vec : Tensor [E, 3]
        From the target to the source's periodic image, Angstrom.
    """

    index: torch.Tensor
    vec: torch.Tensor


def dense_search(
    pos: torch.Tensor,
    cell: torch.Tensor,
    pbc: torch.Tensor,
    natoms: torch.Tensor,
    batch: torch.Tensor,
    cutoff: float,
    max_neighbors: int,
    strict: bool = False,
) -> Edges | None:
    """Find the neighbours of every atom.

    The edges are those of fairchem's ``radius_graph_pbc_v2`` with ``max_neighbors``, atoms outside
    the cell and cells without vectors along axes that are not periodic included. The host waits
    for the device twice: for the cells, and for the number of edges.

    Parameters
    ----------
    pos : Tensor [N, 3]
        Angstrom. Gradients pass through the edges' vectors.
    cell : Tensor [B, 3, 3]
        Row ``a`` is lattice vector ``a``, Angstrom.
    pbc : Tensor [B, 3], bool
    natoms : Tensor [B], int64
    batch : Tensor [N], int64
        Structure of every atom, ascending.
    cutoff : float
        Angstrom.
    max_neighbors : int
        Neighbours kept of every atom, the nearest ones.
    strict : bool
        False also keeps those that tie with the last one kept.

    Returns
    -------
    Edges or None
        None if there are more than :data:`MAX_PAIRS` pairs.
    """
    plan = _Plan(cell, pbc, natoms, cutoff)
    if plan.num_pairs > MAX_PAIRS:
        return None
    inverse, images, atoms = plan.on(pos.device)
    images = images.to(pos.dtype)
    # Elementwise and not as matrix products, which may run in TF32: errors of 0.01 Angstrom.
    shift = (pos.detach().double()[:, :, None] * inverse[batch]).sum(1).floor().to(pos.dtype)
    pos = pos - (shift[:, :, None] * cell[batch]).sum(1)
    offsets = (images[..., None] * cell.detach()[:, None]).sum(2)

    # Row N stands for the atoms that smaller structures lack; nothing is near it.
    padded = torch.cat((pos.detach(), pos.new_full((1, 3), torch.nan)))
    targets = padded[atoms]
    sources = (targets[:, :, None] + offsets[:, None]).flatten(1, 2)
    near = _within(targets, sources, cutoff, max_neighbors, strict)

    graph, target, source = near.nonzero().unbind(1)
    image = source % plan.num_images
    source = atoms[graph, source // plan.num_images]
    target = atoms[graph, target]
    offset = (images[graph, image, :, None] * cell[graph]).sum(1)
    return Edges(torch.stack((source, target)), pos[source] - pos[target] + offset)


def _within(
    targets: torch.Tensor, sources: torch.Tensor, cutoff: float, max_neighbors: int, strict: bool
) -> torch.Tensor:
    """Which sources [B, M, 3] are neighbours of which targets [B, J, 3]: [B, J, M], bool."""
    square = (targets[:, :, None, 0] - sources[:, None, :, 0]).square_()
    for axis in (1, 2):
        square += (targets[:, :, None, axis] - sources[:, None, :, axis]).square_()
    near = (square <= cutoff * cutoff) & (square != 0.0)
    if square.shape[2] <= max_neighbors:
        return near
    square = square.masked_fill_(~near, torch.inf)
    nearest, index = square.topk(max_neighbors, dim=2, largest=False, sorted=False)
    if strict:
        return torch.zeros_like(near).scatter_(2, index, True) & near
    return near & (square <= nearest.amax(2, keepdim=True) + TIE)


class _Plan:
    """What the host has to know of a batch: images of every cell and atoms of every structure."""

    def __init__(
        self, cell: torch.Tensor, pbc: torch.Tensor, natoms: torch.Tensor, cutoff: float
    ) -> None:
        columns = (cell.detach().flatten(1), pbc, natoms[:, None])
        # One copy, so that the host waits once.
        host = torch.cat([column.double() for column in columns], dim=1).cpu().numpy()
        periodic = host[:, 9:12] > 0
        self.natoms = host[:, 12].astype(np.int64)
        rows = np.where(periodic[:, :, None], host[:, :9].reshape(-1, 3, 3), 0.0)
        for number in np.flatnonzero(~periodic.all(axis=1)):
            rows[number] = complete_cell(rows[number])
        # An axis that is not periodic gets a scaled coordinate of 0: no image, no shift.
        self.inverse = np.linalg.inv(rows) * periodic[:, None]
        repeats = np.ceil(cutoff * np.linalg.norm(self.inverse, axis=1)).astype(int)
        numbers = (2 * repeats + 1).prod(axis=1)
        self.num_images = int(numbers.max())
        # Positions that are not a number are near nothing.
        self.images = np.full((len(host), self.num_images, 3), np.nan)
        kinds, kind = np.unique(repeats, axis=0, return_inverse=True)
        for index, found in enumerate(map(_images, kinds)):
            self.images[kind.reshape(-1) == index, : len(found)] = found
        self.most_atoms = int(self.natoms.max())
        self.num_pairs = len(host) * self.most_atoms**2 * self.num_images

    def on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inverse cells [B, 3, 3], images [B, K, 3] and atoms [B, J], padded with N.

        The cells are float64; those of axes that are not periodic are zero.
        """
        slots = np.arange(self.most_atoms)
        first = np.cumsum(self.natoms) - self.natoms
        atoms = np.where(
            slots < self.natoms[:, None], first[:, None] + slots, int(self.natoms.sum())
        )
        parts = [part.reshape(len(atoms), -1) for part in (self.inverse, self.images, atoms)]
        flat = torch.from_numpy(np.concatenate(parts, axis=1)).to(device, non_blocking=True)
        inverse, images, atoms = flat.split([part.shape[1] for part in parts], dim=1)
        return inverse.unflatten(1, (3, 3)), images.unflatten(1, (-1, 3)), atoms.long()


def _images(repeats: np.ndarray) -> np.ndarray:
    """Numbers of all periodic images [K, 3] up to so many repeats [3] to either side."""
    axes = [np.arange(-r, r + 1.0) for r in repeats]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
