"""Energies of random structures do not depend on how a structure is written down."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st

from tests.models import systems
from tests.models.every_backbone import BACKBONES, SAMPLED
from tests.properties.energy import collate, energies, energy_and_gradient, energy_model
from tests.properties.profile import examples
from tests.properties.structures import rotations, structures
from tests.tolerances import INVARIANCE_EXACT, INVARIANCE_SAMPLED

EVERY = pytest.mark.parametrize("name", BACKBONES)
SEEDS = st.integers(0, 2**32 - 1)


def rotation_tolerance(name: str) -> float:
    return INVARIANCE_SAMPLED if name in SAMPLED else INVARIANCE_EXACT


def translated(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    out = atoms.copy()
    out.positions += rng.uniform(-20, 20, size=3)
    return out


def lattice_translated(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Every atom by lattice vectors of its own, along periodic axes."""
    out = atoms.copy()
    shifts = rng.integers(-3, 4, size=(len(atoms), 3)) * atoms.pbc
    out.positions += shifts @ atoms.cell.array
    return out


def permuted(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    return atoms[rng.permutation(len(atoms))]


@EVERY
@examples(8)
@given(structures(), SEEDS)
def test_translation_lattice_translation_and_permutation(name, atoms, seed):
    model, rng = energy_model(name), np.random.default_rng(seed)
    energy = energies(model, atoms)
    for change in (translated, lattice_translated, permuted):
        error = (energies(model, change(atoms, rng)) - energy).abs().item() / len(atoms)
        assert error < INVARIANCE_EXACT, change.__name__


@EVERY
@examples(8)
@given(structures(), rotations())
def test_rotation_of_positions_and_cell(name, atoms, rotation):
    model = energy_model(name)
    turned = systems.rotated(atoms, torch.from_numpy(rotation))
    error = (energies(model, turned) - energies(model, atoms)).abs().item() / len(atoms)
    assert error < rotation_tolerance(name)


@EVERY
@examples(5)
@given(st.lists(structures(max_atoms=25), min_size=2, max_size=4))
def test_batches_equal_single_structures_in_any_order(name, several):
    model = energy_model(name)
    alone = torch.cat([energies(model, atoms) for atoms in several])
    sizes = torch.tensor([len(atoms) for atoms in several])
    for batch, expected in (
        (energies(model, *several), alone),
        (energies(model, *several[::-1]).flip(0), alone),
    ):
        assert ((batch - expected).abs() / sizes).max() < INVARIANCE_EXACT


@EVERY
@examples(5)
@given(structures())
def test_outputs_and_gradients_are_finite(name, atoms):
    energy, gradient = energy_and_gradient(energy_model(name), atoms)
    assert torch.isfinite(energy)
    assert torch.isfinite(gradient).all()
    with torch.no_grad():
        out = BACKBONES[name]()(collate([atoms], torch.float32))
    assert torch.isfinite(out["node_embedding"]).all()


def degenerate(kind: str) -> Atoms:
    """Structures on the poles of edge frames and harmonics, or without any direction at all."""
    steps = np.array([0.0, 1.1, 2.3, 3.2])[:, None]
    if kind == "atom":
        return Atoms("O", positions=[[0.0, 0.0, 0.0]])
    if kind == "crystal":
        return Atoms("Cu", positions=[[0.0, 0.0, 0.0]], cell=2.1 * np.eye(3), pbc=True)
    if kind == "plane":
        grid = np.array([[0, 0, 0], [1.2, 0, 0], [0, 1.2, 0], [1.2, 1.2, 0]])
        return Atoms("CNOH", positions=grid)
    axis = np.eye(3)["xyz".index(kind[-1])]
    if kind.startswith("wire"):
        return Atoms("CO", positions=steps[:2] * axis, cell=2.6 * np.eye(3), pbc=axis.astype(bool))
    return Atoms("CNOH", positions=steps * axis)


@EVERY
@pytest.mark.parametrize(
    "kind",
    ["atom", "crystal", "plane", "chain x", "chain y", "chain z", "wire x", "wire y", "wire z"],
)
def test_gradients_of_degenerate_structures_rotate(name, kind):
    """They are finite where edges lie on an axis, and equal those of a structure off the axes."""
    model, atoms = energy_model(name), degenerate(kind)
    rotation = systems.rotation(3)
    energy, gradient = energy_and_gradient(model, atoms)
    turned_energy, turned = energy_and_gradient(model, systems.rotated(atoms, rotation))
    tolerance = 10 * rotation_tolerance(name)
    torch.testing.assert_close(turned_energy, energy, atol=tolerance, rtol=0)
    torch.testing.assert_close(turned, gradient @ rotation.T, atol=tolerance, rtol=tolerance)


@EVERY
def test_tolerances_are_far_below_what_structures_differ_by(name):
    """Without this the tests above would pass for a constant."""
    model = energy_model(name)
    moved = systems.slab()
    moved.positions[-1] += [0.05, 0.02, -0.03]
    other = moved.copy()
    other.numbers[0] = 78
    values = energies(model, systems.slab(), moved, other)
    assert values.diff().abs().min() / len(moved) > 3 * rotation_tolerance(name)
    assert (energies(model, systems.water()) / 3 - values[0] / len(moved)).abs() > 1e-3
