"""Structures at the edge of what a model can be given, through ASE and every backbone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc111

from tests.models import systems
from tests.models.every_backbone import BACKBONES
from tests.reliability.calculators import calculator

#: float32 sums of many terms, relative.
SUM = 1e-4


def energy_and_forces(atoms: Atoms) -> tuple[float, np.ndarray]:
    atoms.calc = calculator()
    return atoms.get_potential_energy(), atoms.get_forces()


def primitive(edge: float) -> Atoms:
    """One atom whose neighbours are all images of itself."""
    return Atoms("Cu", cell=[edge] * 3, pbc=True)


@pytest.mark.parametrize("name", BACKBONES)
def test_one_atom_among_hundreds_of_its_images(name):
    backbone = BACKBONES[name]().eval()
    data = systems.collate([primitive(0.7), systems.single_atom(), primitive(0.6)], torch.float64)
    data.tags = torch.zeros_like(data.atomic_numbers)
    with torch.no_grad():
        out = backbone.double()(data)
    counts = torch.bincount(out["edge_index"][1], minlength=3)
    assert counts[1] == 0
    assert 300 < counts[0] < counts[2]
    assert torch.isfinite(out["node_embedding"]).all()


def test_a_cell_of_a_third_of_an_angstrom():
    energy, forces = energy_and_forces(primitive(0.3))
    assert np.isfinite(energy)
    assert np.isfinite(forces).all()


def test_atoms_far_outside_the_cell_are_those_inside():
    atoms = systems.slab()
    energy, forces = energy_and_forces(atoms)
    moved = atoms.copy()
    rng = np.random.default_rng(0)
    moved.positions += rng.integers(-40, 41, (len(atoms), 3)) @ atoms.cell.array
    far, far_forces = energy_and_forces(moved)
    assert far == pytest.approx(energy, abs=SUM)
    np.testing.assert_allclose(far_forces, forces, atol=SUM)


def test_two_thousand_atoms():
    """The energy of 16 copies is 16 times one's, and so are the forces."""
    one = fcc111("Cu", (5, 5, 5), vacuum=6.0, periodic=True)
    one.pbc = True
    one.rattle(0.05, seed=0)
    big = one.repeat((4, 4, 1))
    assert len(big) == 2000
    (energy, forces), (total, all_forces) = energy_and_forces(one), energy_and_forces(big)
    # The normaliser's mean is added once to each.
    mean = -0.75
    assert total - mean == pytest.approx(16 * (energy - mean), rel=SUM)
    np.testing.assert_allclose(all_forces, np.tile(forces, (16, 1)), atol=10 * SUM)


def test_no_atoms():
    with pytest.raises(ValueError, match="Atoms object has no atoms"):
        energy_and_forces(Atoms())
