"""Small structures for the tests: slabs, molecules, crystals, wires, single atoms."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch


def slab(
    metal: str = "Cu", size: tuple[int, int, int] = (2, 2, 3), seed: int = 0, rattle: float = 0.08
) -> Atoms:
    """Rattled fcc(111) slab with CO on top, periodic in all directions as in OC20."""
    atoms = fcc111(metal, size=size, vacuum=6.0, periodic=True)
    add_adsorbate(atoms, molecule("CO"), height=1.9, position="ontop")
    atoms.set_pbc(True)
    atoms.rattle(rattle, seed=seed)
    atoms.set_tags(np.where(atoms.get_tags() > 1, 0, np.where(atoms.get_tags() == 1, 1, 2)))
    return atoms


def water() -> Atoms:
    """A molecule without a cell."""
    return molecule("H2O")


def crystal() -> Atoms:
    """One atom in a primitive cell, its neighbours all images of itself."""
    return bulk("Cu", "fcc", a=3.6)


def wire() -> Atoms:
    """Periodic along one axis that is not the first."""
    return Atoms(
        "CO", positions=[[0, 0, 0.2], [0.3, 1.2, 0.1]], cell=[5.0, 3.0, 5.0], pbc=[0, 1, 0]
    )


def single_atom() -> Atoms:
    """One isolated atom: no edges."""
    return Atoms("O", positions=[[0.1, 0.2, 0.3]])


def collate(systems: list[Atoms], dtype: torch.dtype = torch.float64) -> AtomicData:
    """Batch ASE structures as fairchem does."""
    return atomicdata_list_to_batch(
        [AtomicData.from_ase(a, task_name="oc20", target_dtype=dtype) for a in systems]
    )


def rotation(seed: int = 0) -> torch.Tensor:
    """A random proper rotation [3, 3], float64."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    return q * torch.sign(torch.det(q))


def rotated(atoms: Atoms, r: torch.Tensor) -> Atoms:
    """Rotate positions and cell: a row vector v becomes v R^T."""
    out = atoms.copy()
    out.set_cell(atoms.cell.array @ r.numpy().T)
    out.positions = atoms.positions @ r.numpy().T
    return out
