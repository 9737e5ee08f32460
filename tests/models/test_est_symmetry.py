"""Symmetries of the EST network in float64: exact ones, and rotations up to sampling."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from ase import Atoms

from tests.models import systems
from tests.models.small import outputs
from tests.models.test_est import model
from tests.tolerances import BATCH, STRICT, TOL

#: Relative change of energies and forces under rotation with 110 points in all blocks.
ROTATION = 5e-5

MAKERS = [systems.slab, systems.water, systems.wire]


def on_points(points: int, **changes):
    """The small model with one Lebedev rule in all its blocks."""
    rule = {"rule": {"kind": "lebedev", "num_points": points}}
    return model(message=rule, update=rule, **changes)


def change(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def rotation_errors(made, make, seed: int = 1) -> tuple[float, float]:
    r = systems.rotation(seed)
    energy, forces = outputs(made, systems.collate([make()]))
    turned = outputs(made, systems.collate([systems.rotated(make(), r)]))
    return change(turned[0], energy), change(turned[1], forces @ r.T)


@pytest.mark.parametrize("make", MAKERS)
def test_rotation_of_positions_and_cell(make):
    assert max(rotation_errors(on_points(110), make)) < ROTATION


def test_rotation_error_falls_with_the_degree_of_the_points():
    errors = [max(rotation_errors(on_points(points), systems.water)) for points in (14, 26, 50)]
    assert all(3 * after < before for before, after in pairwise(errors))
    assert errors[0] < 0.2


def test_translation_lattice_translation_and_permutation():
    made, atoms = model(), systems.slab()
    energy, forces = outputs(made, systems.collate([atoms]))
    moved = atoms.copy()
    moved.positions += [0.3, -7.1, 2.2]
    moved.positions[3] += 2 * moved.cell[0] - moved.cell[1]
    order = np.random.default_rng(0).permutation(len(atoms))
    for changed, expected in ((moved, forces), (atoms[order], forces[order])):
        result = outputs(made, systems.collate([changed]))
        torch.testing.assert_close(result[0], energy, atol=TOL[torch.float64], rtol=0)
        torch.testing.assert_close(result[1], expected, atol=TOL[torch.float64], rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batch_equals_single_systems(dtype):
    made = model(dtype)
    batch = [make() for make in MAKERS] + [systems.single_atom(), systems.slab("Pt", seed=3)]
    energy, forces = outputs(made, systems.collate(batch, dtype))
    alone = [outputs(made, systems.collate([a], dtype)) for a in batch]
    for together, part in ((energy, 0), (forces, 1)):
        single = torch.cat([x[part] for x in alone])
        torch.testing.assert_close(together, single, atol=BATCH[dtype], rtol=0)


def test_large_box_equals_no_cell():
    made, water = model(), systems.water()
    boxed = water.copy()
    boxed.set_cell([30, 30, 30])
    boxed.center()
    boxed.set_pbc(True)
    free, box = (outputs(made, systems.collate([a])) for a in (water, boxed))
    for a, b in zip(free, box, strict=True):
        torch.testing.assert_close(a, b, atol=STRICT, rtol=0)


def test_edges_along_the_polar_axis():
    """Nothing there is singular: energies, forces and gradients join on smoothly."""
    made = on_points(26, conservative=True)

    def chain(tilt: float) -> tuple[torch.Tensor, torch.Tensor]:
        positions = [[0, 0, 0], [tilt, 1.1, 0], [0, 2.3, tilt]]
        return outputs(made, systems.collate([Atoms("OCO", positions=positions)]))

    exact, near = chain(0.0), chain(1e-7)
    assert torch.isfinite(exact[1]).all()
    for a, b in zip(exact, near, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert exact[1][:, [0, 2]].abs().max() < 1e-3 * exact[1].abs().max()


def test_an_atom_crosses_the_cutoff_smoothly():
    made = model()

    def pair(distance: float) -> torch.Tensor:
        return outputs(made, systems.collate([Atoms("CO", [[0, 0, 0], [0, 0, distance]])]))[0]

    alone = pair(4.5)
    gaps = [float((pair(4.0 - step) - alone).abs()) for step in (0.04, 0.02, 0.01)]
    assert gaps[0] > 1e-9
    # The envelope falls with the third power of the distance to the cutoff.
    assert all(5 * after < before for before, after in pairwise(gaps))
