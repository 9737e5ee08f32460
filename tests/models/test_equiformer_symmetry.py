"""Symmetries of whole Equiformer models in float64: exact ones, and EST's up to sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.models import systems
from tests.models.small_equiformer import both, energies, model
from tests.tolerances import BATCH, TOL

#: Relative change of energies and vectors under rotation with the EST update's 110 points.
ROTATION = 1e-6

MAKERS = [systems.slab, systems.water, systems.crystal, systems.wire]
BACKBONES = pytest.mark.parametrize("baseline", [False, True], ids=["est", "feed-forward"])


def change(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))


@pytest.mark.parametrize("make", MAKERS)
@BACKBONES
def test_rotation_of_positions_and_cell(make, baseline):
    made = model(baseline=baseline, vectors=True)
    tolerance = TOL[torch.float64] if baseline else ROTATION
    r = systems.rotation(1)
    e, v = both(made, systems.collate([make()]))
    e_turned, v_turned = both(made, systems.collate([systems.rotated(make(), r)]))
    assert change(e_turned, e) < tolerance
    if make is not systems.crystal:  # its vectors vanish by symmetry
        assert change(v_turned, v @ r.T) < tolerance


def test_higher_degrees_and_linear_messages_rotate():
    made = model(
        baseline=True,
        vectors=True,
        irreps="16x0e+8x1e+4x2e",
        lmax_sh=2,
        message={"hidden": "16x0e+8x1e+4x2e", "head": "8x0e+4x1e+2x2e", "nonlinear": False},
        update={"hidden": "24x0e+12x1e+6x2e"},
    )
    r = systems.rotation(2)
    e, v = both(made, systems.collate([systems.slab()]))
    e_turned, v_turned = both(made, systems.collate([systems.rotated(systems.slab(), r)]))
    assert change(e_turned, e) < TOL[torch.float64]
    assert change(v_turned, v @ r.T) < TOL[torch.float64]


def test_rotation_error_falls_with_the_degree_of_the_points():
    r = systems.rotation(2)
    errors = []
    for points in (14, 26, 50):
        made = model(update={"rule": {"kind": "lebedev", "num_points": points}})
        e = energies(made, systems.collate([systems.slab()]))
        turned = energies(made, systems.collate([systems.rotated(systems.slab(), r)]))
        errors.append(change(turned, e))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[0] < 1e-2


@BACKBONES
def test_translation_lattice_translation_and_permutation(baseline):
    made = model(baseline=baseline, vectors=True)
    atoms = systems.slab()
    e, v = both(made, systems.collate([atoms]))
    moved = atoms.copy()
    moved.positions += [0.3, -7.1, 2.2]
    moved.positions[3] += 2 * moved.cell[0] - moved.cell[1]
    order = np.random.default_rng(0).permutation(len(atoms))
    for changed, expected in ((moved, v), (atoms[order], v[order])):
        e_changed, v_changed = both(made, systems.collate([changed]))
        torch.testing.assert_close(e_changed, e, atol=TOL[torch.float64], rtol=0)
        torch.testing.assert_close(v_changed, expected, atol=TOL[torch.float64], rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@BACKBONES
def test_batch_equals_single_systems(dtype, baseline):
    made = model(dtype, baseline=baseline, vectors=True)
    # In a perfect crystal all l > 0 vanish, and the layer norm turns rounding into features.
    batch = [make() for make in MAKERS if make is not systems.crystal]
    batch += [systems.single_atom(), systems.slab("Pt", seed=3)]
    e, v = both(made, systems.collate(batch, dtype))
    alone = [both(made, systems.collate([a], dtype)) for a in batch]
    torch.testing.assert_close(e, torch.cat([x[0] for x in alone]), atol=BATCH[dtype], rtol=0)
    torch.testing.assert_close(v, torch.cat([x[1] for x in alone]), atol=BATCH[dtype], rtol=0)


def test_large_box_equals_no_cell():
    made = model()
    water = systems.water()
    boxed = water.copy()
    boxed.set_cell([30, 30, 30])
    boxed.center()
    boxed.set_pbc(True)
    e, e_box = (energies(made, systems.collate([a])) for a in (water, boxed))
    torch.testing.assert_close(e_box, e, atol=TOL[torch.float64], rtol=0)


def test_reflection_is_no_symmetry():
    """The features are those of rotations alone: mirror images may have different energies."""
    made = model(baseline=True)
    atoms = systems.slab()
    mirrored = atoms.copy()
    mirrored.set_cell(atoms.cell.array * [-1, 1, 1])
    mirrored.positions = atoms.positions * [-1, 1, 1]
    e, e_mirrored = (energies(made, systems.collate([a])) for a in (atoms, mirrored))
    assert change(e_mirrored, e) > 1e-6
