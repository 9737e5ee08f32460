"""Energy and forces are continuous where neighbours cross the cutoff, with the envelope."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st

from tests.models.every_backbone import BACKBONES, GRAPH
from tests.properties.energy import energies, energy_and_gradient, energy_model
from tests.properties.profile import examples
from tests.properties.structures import structures

CUTOFF = GRAPH["cutoff"]
EVERY = pytest.mark.parametrize("name", BACKBONES)

#: Distances before and behind the cutoff, Angstrom.
STEPS = (1e-3, 1e-5, 1e-7)


def with_probe(atoms: Atoms, seed: int) -> tuple[Atoms, np.ndarray]:
    """Add an atom at the cutoff of the first one; also the direction from that one."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    out = atoms.copy()
    out += Atoms([rng.integers(1, 90)], positions=[atoms.positions[0] + CUTOFF * direction])
    return out, direction


def crossing(atoms: Atoms, direction: np.ndarray, step: float) -> tuple[Atoms, Atoms]:
    """The last atom before and behind the cutoff."""
    sides = []
    for sign in (-1, 1):
        side = atoms.copy()
        side.positions[-1] += sign * step * direction
        sides.append(side)
    return sides[0], sides[1]


@EVERY
@examples(4)
@given(structures(max_atoms=6, cells=("none", "box")), st.integers(0, 2**32 - 1))
def test_energy_and_forces_change_with_the_step(name, atoms, seed):
    """No jump is left as the steps shrink: both changes fall in proportion to the step."""
    model = energy_model(name, envelope=True)
    atoms, direction = with_probe(atoms, seed)
    changes = []
    for step in STEPS:
        (e, g), (e_behind, g_behind) = (
            energy_and_gradient(model, side) for side in crossing(atoms, direction, step)
        )
        changes.append(((e - e_behind).abs().item(), (g - g_behind).abs().max().item()))
    for (energy, force), (smaller_energy, smaller_force) in pairwise(changes):
        assert smaller_energy < 0.02 * energy + 1e-12
        assert smaller_force < 0.02 * force + 1e-10


@EVERY
def test_the_only_neighbour_leaves(name):
    model = energy_model(name, envelope=True)
    alone = energies(model, Atoms("Cu"), Atoms("O")).sum()

    def pair(distance: float) -> tuple[torch.Tensor, torch.Tensor]:
        return energy_and_gradient(model, Atoms("CuO", positions=[[0, 0, 0], [0, distance, 0]]))

    assert (pair(CUTOFF - 0.4)[0] - alone).abs() > 1e-5
    near = [pair(CUTOFF - step) for step in (1e-3, 1e-4, 1e-5)]
    for (e, g), (closer_e, closer_g) in pairwise(near):
        # A cosine falls with the square of the step, the polynomial with its cube.
        assert (closer_e - alone).abs() < 0.05 * (e - alone).abs() + 1e-14
        assert closer_g.abs().max() < 0.2 * g.abs().max() + 1e-14
    for distance in (CUTOFF, CUTOFF + 1e-9, CUTOFF + 1.0):
        e, g = pair(distance)
        torch.testing.assert_close(e, alone, atol=1e-13, rtol=0)
        assert g.abs().max() < 1e-15


@EVERY
def test_all_images_leave_at_once(name):
    """A crystal of one atom whose lattice constant passes the cutoff."""
    model = energy_model(name, envelope=True)

    def crystal(constant: float) -> Atoms:
        return Atoms("Pt", cell=constant * np.eye(3), pbc=True)

    values = energies(model, *(crystal(CUTOFF + d) for d in (-1e-2, -1e-4, -1e-6, 0, 1e-6)))
    left = (values - energies(model, Atoms("Pt"))).abs()
    assert left[0] > 1e-13
    assert left[1] < 1e-3 * left[0] + 1e-13
    assert (left[2:] < 1e-13).all()


@pytest.mark.parametrize("name", ["est_eqv2", "eqv2", "est_equiformer", "equiformer"])
def test_the_originals_jump(name):
    """Without the envelope, as published: the test above would see it."""
    atoms = Atoms("CuOC", positions=[[0, 0, 0], [0.6, 0.9, 0.8], [0, CUTOFF, 0]])
    for envelope, expected in ((False, True), (True, False)):
        model = energy_model(name, envelope=envelope)
        before, behind = crossing(atoms, np.array([0.0, 1.0, 0.0]), 1e-7)
        jump = energies(model, before, behind).diff().abs().item()
        assert (jump > 1e-5) == expected
