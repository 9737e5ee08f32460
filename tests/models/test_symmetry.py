"""Symmetries of whole models in float64: what must hold exactly, and what holds to sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.models import systems
from tests.models.small import model, outputs
from tests.tolerances import BATCH, TOL

#: Relative change of energy and forces under rotation with degree-17 points at lmax = 2 and 8
#: channels: what is left is the sampling of the S2 activation and of the EST layers.
ROTATION = 1e-3

MAKERS = [systems.slab, systems.water, systems.crystal, systems.wire]


def change(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("conservative", [False, True])
def test_rotation_of_positions_and_cell(make, conservative):
    made = model(conservative=conservative)
    r = systems.rotation(1)
    e, f = outputs(made, systems.collate([make()]))
    e_rotated, f_rotated = outputs(made, systems.collate([systems.rotated(make(), r)]))
    assert change(e_rotated, e) < ROTATION
    if f.abs().max() > 1e-6:  # the crystal's forces vanish by symmetry
        assert change(f_rotated, f @ r.T) < ROTATION


def test_rotation_error_falls_with_the_degree_of_the_points():
    r = systems.rotation(2)
    errors = []
    for points in (14, 50, 194):
        rule = {"kind": "lebedev", "num_points": points}
        made = model(update={"rule": rule}, message={"activation_rule": rule})
        _, f = outputs(made, systems.collate([systems.slab()]))
        _, g = outputs(made, systems.collate([systems.rotated(systems.slab(), r)]))
        errors.append(change(g, f @ r.T))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-5


def test_translation_and_lattice_translation_of_one_atom():
    made = model()
    atoms = systems.slab()
    e, f = outputs(made, systems.collate([atoms]))
    moved = atoms.copy()
    moved.positions += [0.3, -7.1, 2.2]
    moved.positions[3] += 2 * moved.cell[0] - moved.cell[1]
    e_moved, f_moved = outputs(made, systems.collate([moved]))
    torch.testing.assert_close(e_moved, e, atol=TOL[torch.float64], rtol=0)
    torch.testing.assert_close(f_moved, f, atol=TOL[torch.float64], rtol=0)


def test_permutation_of_atoms():
    made = model()
    atoms = systems.slab()
    order = np.random.default_rng(0).permutation(len(atoms))
    e, f = outputs(made, systems.collate([atoms]))
    e_permuted, f_permuted = outputs(made, systems.collate([atoms[order]]))
    torch.testing.assert_close(e_permuted, e, atol=TOL[torch.float64], rtol=0)
    torch.testing.assert_close(f_permuted, f[order], atol=TOL[torch.float64], rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batch_equals_single_systems(dtype):
    made = model(dtype)
    batch = [make() for make in MAKERS] + [systems.single_atom(), systems.slab("Pt", seed=3)]
    if dtype == torch.float32:
        # In a perfect crystal all l > 0 vanish, and the layer norm turns rounding into features.
        batch.remove(systems.crystal())
    e, f = outputs(made, systems.collate(batch, dtype))
    alone = [outputs(made, systems.collate([a], dtype)) for a in batch]
    torch.testing.assert_close(e, torch.cat([x[0] for x in alone]), atol=BATCH[dtype], rtol=0)
    torch.testing.assert_close(f, torch.cat([x[1] for x in alone]), atol=BATCH[dtype], rtol=0)


def test_symmetry_forbidden_force_components_vanish():
    """A dimer's forces lie along its axis, also on the pole of the edge frames."""
    from ase import Atoms

    made = model()
    for axis in ([0, 1, 0], [1e-9, 1, 0], [0, -1, 1e-7], [0, 0, 1], [0.6, 0.8, 0.0]):
        axis = np.array(axis) / np.linalg.norm(axis)
        atoms = Atoms("BeBe", positions=[0 * axis, 2.1 * axis])
        _, f = outputs(made, systems.collate([atoms]))
        f = f.numpy()
        along = f @ axis
        sideways = f - along[:, None] * axis
        assert np.abs(along).max() > 1e-6
        assert np.abs(sideways).max() < ROTATION * np.abs(along).max()


def test_large_box_equals_no_cell():
    made = model()
    water = systems.water()
    boxed = water.copy()
    boxed.set_cell([30, 30, 30])
    boxed.center()
    boxed.set_pbc(True)
    e, f = outputs(made, systems.collate([water]))
    e_box, f_box = outputs(made, systems.collate([boxed]))
    torch.testing.assert_close(e_box, e, atol=TOL[torch.float64], rtol=0)
    torch.testing.assert_close(f_box, f, atol=TOL[torch.float64], rtol=0)
