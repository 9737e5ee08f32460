"""Random structures: any elements, any periodicity, any cell, also degenerate geometries."""

from __future__ import annotations

import itertools

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from hypothesis import strategies as st

from tests.models.every_backbone import GRAPH

#: Atoms, their images included, are at least this far apart, Angstrom.
SHORTEST = 0.5

#: Larger graphs are cut to fewer atoms, so that an example takes a fraction of a second.
MOST_EDGES = 2500

GEOMETRIES = ("random", "along x", "along y", "along z", "line", "plane", "lattice")
CELLS = ("none", "box", "skewed", "tiny")
PERIODICITIES = tuple(itertools.product((True, False), repeat=3))


@st.composite
def structures(draw: st.DrawFn, max_atoms: int = 60, cells: tuple[str, ...] = CELLS) -> Atoms:
    """A structure of 1 to `max_atoms` atoms, some of them outside its cell.

    Geometries: uniformly random; exactly above each other along a Cartesian axis; on a line; in a
    plane; on a cubic lattice. Cells: none; a box; one skewed by sums of its vectors (the same
    lattice); one with vectors from 1.2 Angstrom. Vectors of axes that are not periodic are zero
    or anything.
    """
    size = draw(st.integers(1, max_atoms), label="atoms")
    geometry = draw(st.sampled_from(GEOMETRIES), label="geometry")
    kind = draw(st.sampled_from(cells), label="cell")
    pbc = np.zeros(3, dtype=bool)
    if kind != "none":
        pbc = np.array(draw(st.sampled_from(PERIODICITIES), label="pbc"))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))

    lattice = _reduced_cell(rng, tiny=kind == "tiny")
    extent = np.where(pbc, np.linalg.norm(lattice, axis=1), (6.0 * size) ** (1 / 3) + 1.0)
    positions = _geometry(rng, geometry, size, extent)
    cell = _skew(rng, lattice, pbc) if kind == "skewed" else lattice
    cell[~pbc] *= rng.integers(0, 2, size=(3, 1))[~pbc]
    if kind == "none":
        cell = np.zeros((3, 3))
    atoms = Atoms(rng.integers(1, 90, size=size), positions=positions, cell=cell, pbc=pbc)
    atoms = _without_close_pairs(atoms)
    shifts = rng.integers(-2, 3, size=(len(atoms), 3)) * pbc * rng.integers(0, 2)
    atoms.positions += shifts @ cell
    return atoms


def _reduced_cell(rng: np.random.Generator, tiny: bool) -> np.ndarray:
    """Row vectors close to a rotated box, so that no lattice vector is much shorter."""
    lengths = rng.uniform(1.2, 3.0, size=3) if tiny else rng.uniform(3.0, 9.0, size=3)
    axes = np.eye(3)
    if rng.random() < 0.5:
        axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return lengths[:, None] * (axes + rng.uniform(-0.15, 0.15, size=(3, 3)) * rng.integers(0, 2))


def _skew(rng: np.random.Generator, lattice: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Another cell of the same lattice: multiples of periodic vectors added to one another."""
    cell = lattice.copy()
    for _ in range(2):
        for i, j in ((0, 1), (1, 2), (2, 0)):
            if pbc[i] and pbc[j]:
                cell[i] += rng.integers(-1, 2) * cell[j]
    return cell


def _geometry(rng: np.random.Generator, kind: str, size: int, extent: np.ndarray) -> np.ndarray:
    steps = np.cumsum(rng.uniform(0.7, 2.5, size=size))[:, None]
    if kind.startswith("along"):
        return steps * np.eye(3)["xyz".index(kind[-1])]
    if kind == "line":
        direction = rng.normal(size=3)
        return steps * direction / np.linalg.norm(direction)
    if kind == "lattice":
        spacing = rng.uniform(1.0, 3.0)
        grid = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), axis=-1)
        return spacing * grid.reshape(-1, 3)[:size]
    positions = rng.uniform(size=(size, 3)) * extent
    if kind == "plane":
        positions[:, rng.integers(3)] = 0.0
    return positions


def _without_close_pairs(atoms: Atoms) -> Atoms:
    """Drop the later atom of each pair that is too close; then some, if there are many edges."""
    first, second = neighbor_list("ij", atoms, SHORTEST)
    close = first < second
    keep = np.ones(len(atoms), dtype=bool)
    for i, j in sorted(zip(first[close], second[close], strict=True)):
        if keep[i]:
            keep[j] = False
    atoms = atoms[keep]
    while len(atoms) > 1 and len(neighbor_list("i", atoms, GRAPH["cutoff"])) > MOST_EDGES:
        atoms = atoms[: len(atoms) // 2]
    return atoms


@st.composite
def rotations(draw: st.DrawFn) -> np.ndarray:
    """Proper rotations [3, 3]: random ones, and quarter turns about Cartesian axes."""
    if draw(st.booleans(), label="quarter turn"):
        signs = np.eye(3)[[1, 0, 2]] * [1.0, -1.0, 1.0]
        turn = np.roll(signs, draw(st.integers(0, 2)), axis=(0, 1))
        return np.linalg.matrix_power(turn, draw(st.integers(1, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="rotation"))
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return q * np.sign(np.linalg.det(q))
