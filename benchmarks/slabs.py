"""Random slabs with adsorbates of OC20's sizes, as batches for the benchmarks."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch

METALS = ("Cu", "Pt", "Pd", "Au", "Ag", "Ni")
#: Repeats of the fcc(111) cell: 36 to 120 atoms, 76 on average, as in OC20.
SIZES = (
    (3, 3, 4), (4, 3, 4), (5, 3, 4), (4, 4, 4), (5, 5, 3),
    (4, 4, 5), (5, 4, 4), (6, 4, 4), (5, 5, 4), (6, 5, 4),
)  # fmt: skip
ADSORBATES = ("CO", "OH", "CH3", "H", "O")


def random_slab(rng: np.random.Generator) -> AtomicData:
    """Return one slab with an adsorbate, atoms displaced by 0.1 Angstrom, random labels."""
    slab = fcc111(rng.choice(METALS), size=SIZES[rng.integers(len(SIZES))], vacuum=10.0)
    below = slab.get_tags() > 2
    name = str(rng.choice(ADSORBATES))
    adsorbate = Atoms(name) if name in ("H", "O") else molecule(name)
    add_adsorbate(slab, adsorbate, 1.9, str(rng.choice(("ontop", "bridge", "fcc"))))
    slab.set_pbc(True)
    slab.positions += rng.normal(scale=0.1, size=slab.positions.shape)
    slab.set_tags([0] * len(slab))
    data = AtomicData.from_ase(slab, task_name="oc20", r_edges=False)
    data.fixed[: len(below)] = torch.from_numpy(below.astype(np.int64))
    data.energy = torch.tensor([rng.normal()], dtype=torch.float32)
    data.forces = torch.tensor(rng.normal(size=(len(slab), 3)), dtype=torch.float32)
    return data


def batches(size: int, count: int, seed: int) -> list[AtomicData]:
    """Return ``count`` batches of ``size`` slabs."""
    rng = np.random.default_rng(seed)
    return [atomicdata_list_to_batch([random_slab(rng) for _ in range(size)]) for _ in range(count)]
