"""Neighbour search by all pairs of atoms and periodic images, in few steps.

fairchem's search sorts atoms into boxes: less arithmetic, but hundreds of small operations and
many waits of the host for the GPU, most of them once a structure. For the sizes that one batch
has, a GPU computes all distances in less time than it takes to start those operations. Structures
of like size are searched together, so that little is computed for atoms that smaller ones lack.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from ase.geometry import complete_cell

#: Distances that are computed at a time; they and what is derived from them take about 1 GiB.
MAX_PAIRS = 2**26

#: Distances that cost a GPU less than starting the operations of another group.
FEW_PAIRS = 2**23

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
    for the device once for the cells, and once for the number of edges of every group of
    structures; there are few groups, whatever the size of the batch.

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
        None if one structure has more than :data:`MAX_PAIRS` pairs of atoms and images.
    """
    plan = _Plan(cell, pbc, natoms, cutoff)
    if plan.most_pairs > MAX_PAIRS:
        return None
    inverse, groups = plan.on(pos.device)
    # Elementwise and not as matrix products, which may run in TF32: errors of 0.01 Angstrom.
    shift = (pos.detach().double()[:, :, None] * inverse[batch]).sum(1).floor().to(pos.dtype)
    pos = pos - (shift[:, :, None] * cell[batch]).sum(1)

    # Row N stands for the atoms that smaller structures lack; nothing is near it.
    padded = torch.cat((pos.detach(), pos.new_full((1, 3), torch.nan)))
    found = [
        _pairs(padded, cell.detach(), group, cutoff, max_neighbors, strict) for group in groups
    ]
    source, target, image = (torch.cat(parts) for parts in zip(*found, strict=True))
    if len(groups) > 1:
        target, order = target.sort(stable=True)
        source, image = source[order], image[order]
    offset = (image[:, :, None] * cell[batch[target]]).sum(1)
    return Edges(torch.stack((source, target)), pos[source] - pos[target] + offset)


class _Group(NamedTuple):
    """Structures that are searched together.

    Attributes
    ----------
    number : Tensor [G], int64
        Of the structures in the batch.
    atoms : Tensor [G, J], int64
        Padded with the batch's number of atoms.
    images : Tensor [G, K, 3], float64
        Padded with NaN.
    """

    number: torch.Tensor
    atoms: torch.Tensor
    images: torch.Tensor


def _pairs(
    pos: torch.Tensor,
    cell: torch.Tensor,
    group: _Group,
    cutoff: float,
    max_neighbors: int,
    strict: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sources [E], targets [E] and images [E, 3] of a group's edges, sorted by target."""
    images = group.images.to(pos.dtype)
    offsets = (images[..., None] * cell[group.number][:, None]).sum(2)
    targets = pos[group.atoms]
    sources = (targets[:, :, None] + offsets[:, None]).flatten(1, 2)
    near = _within(targets, sources, cutoff, max_neighbors, strict)
    graph, target, source = near.nonzero().unbind(1)
    num_images = images.shape[1]
    return (
        group.atoms[graph, source // num_images],
        group.atoms[graph, target],
        images[graph, source % num_images],
    )


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
    """What the host has to know of a batch: images of every cell, atoms and groups of structures.

    Attributes
    ----------
    most_pairs : int
        Pairs of atoms and images of the structure that has most.
    groups : list of array [G], int64
        Numbers of the structures that are searched together.
    """

    def __init__(
        self, cell: torch.Tensor, pbc: torch.Tensor, natoms: torch.Tensor, cutoff: float
    ) -> None:
        columns = (cell.detach().flatten(1), pbc, natoms[:, None])
        # One copy, so that the host waits once.
        host = torch.cat([column.double() for column in columns], dim=1).cpu().numpy()
        periodic = host[:, 9:12] > 0
        self._natoms = host[:, 12].astype(np.int64)
        rows = np.where(periodic[:, :, None], host[:, :9].reshape(-1, 3, 3), 0.0)
        for number in np.flatnonzero(~periodic.all(axis=1)):
            rows[number] = complete_cell(rows[number])
        # An axis that is not periodic gets a scaled coordinate of 0: no image, no shift.
        self._inverse = np.linalg.inv(rows) * periodic[:, None]
        repeats = np.ceil(cutoff * np.linalg.norm(self._inverse, axis=1)).astype(int)
        kinds, kind = np.unique(repeats, axis=0, return_inverse=True)
        self._images, self._kind = [_images(repeats) for repeats in kinds], kind.reshape(-1)
        num_images = (2 * repeats + 1).prod(axis=1)
        self.most_pairs = int((self._natoms**2 * num_images).max())
        self.groups = _groups(self._natoms, num_images)

    def on(self, device: torch.device) -> tuple[torch.Tensor, list[_Group]]:
        """Inverse cells [B, 3, 3], float64, zero for axes that are not periodic; and the groups."""
        arrays = [self._inverse]
        for group in self.groups:
            arrays += [group, self._atoms(group), self._images_of(group)]
        # One copy here, too.
        flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays], dtype=float))
        parts = flat.to(device, non_blocking=True).split([array.size for array in arrays])
        inverse, *others = (
            part.view(array.shape) for part, array in zip(parts, arrays, strict=True)
        )
        groups = [
            _Group(number.long(), atoms.long(), images)
            for number, atoms, images in zip(*[iter(others)] * 3, strict=True)
        ]
        return inverse, groups

    def _atoms(self, group: np.ndarray) -> np.ndarray:
        """Atoms [G, J] of structures, padded with the number of all."""
        slots = np.arange(self._natoms[group].max())
        first = (np.cumsum(self._natoms) - self._natoms)[group]
        present = slots < self._natoms[group, None]
        return np.where(present, first[:, None] + slots, self._natoms.sum())

    def _images_of(self, group: np.ndarray) -> np.ndarray:
        """Images [G, K, 3] of structures; positions that are not a number are near nothing."""
        found = [self._images[kind] for kind in self._kind[group]]
        images = np.full((len(group), max(map(len, found)), 3), np.nan)
        for row, some in zip(images, found, strict=True):
            row[: len(some)] = some
        return images


def _groups(natoms: np.ndarray, num_images: np.ndarray) -> list[np.ndarray]:
    """Share structures out so that padding at most doubles the pairs, unless they are few.

    By images first, of which cells of like size have a like number, then by atoms.
    """
    pairs = natoms**2 * num_images
    groups: list[list[int]] = []
    most_atoms = most_images = total = 0
    for number in np.lexsort((-natoms, -num_images)):
        most_atoms = max(most_atoms, int(natoms[number]))
        most_images = max(most_images, int(num_images[number]))
        total += int(pairs[number])
        padded = (len(groups[-1]) + 1) * most_atoms**2 * most_images if groups else MAX_PAIRS + 1
        if padded <= min(MAX_PAIRS, max(FEW_PAIRS, 2 * total)):
            groups[-1].append(number)
        else:
            groups.append([number])
            most_atoms, most_images = int(natoms[number]), int(num_images[number])
            total = int(pairs[number])
    # Atoms of a group then ascend, and so do its edges' targets.
    return [np.sort(group) for group in groups]


def _images(repeats: np.ndarray) -> np.ndarray:
    """Numbers of all periodic images [K, 3] up to so many repeats [3] to either side."""
    axes = [np.arange(-r, r + 1.0) for r in repeats]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
