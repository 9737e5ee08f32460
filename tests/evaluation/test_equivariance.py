"""The measurement of equivariance on a trained checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from est_ocp.cli.report import first_structures
from est_ocp.evaluation import equivariance
from est_ocp.evaluation.equivariance import measure, random_rotations


@pytest.fixture(scope="module")
def batch(tiny_run):
    return first_structures(tiny_run / "canonical_config.yaml", 3)


def test_rotations_are_rotations_and_repeatable():
    r = random_rotations(50, seed=1)
    eye = torch.eye(3, dtype=torch.float64).expand(50, 3, 3)
    torch.testing.assert_close(r @ r.mT, eye, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.linalg.det(r), torch.ones(50, dtype=torch.float64))
    assert torch.equal(r, random_rotations(50, seed=1))
    # uniform: the mean of a rotation matrix's entries vanishes
    assert random_rotations(4000).mean(0).abs().max() < 0.05


def test_errors_are_small_and_one_for_each_rotation_and_structure(tiny_run, batch):
    errors = measure(str(tiny_run), batch, num_rotations=2)
    assert errors.forces.shape == errors.energy.shape == (2, 3)
    assert 0 < errors.forces.max() < 5e-2
    assert errors.energy.max() < 5e-2


def test_a_cell_that_is_left_behind_shows(tiny_run, batch, monkeypatch):
    honest = measure(str(tiny_run), batch, num_rotations=2).forces.max()
    original = equivariance._predict

    def forget_the_cell(unit, structures, rotation):
        still = structures.clone()
        still.cell = structures.cell.double() @ rotation
        return original(unit, still, rotation)

    monkeypatch.setattr(equivariance, "_predict", forget_the_cell)
    assert measure(str(tiny_run), batch, num_rotations=2).forces.max() > max(0.1, 3 * honest)


def test_the_same_batch_gives_the_same_figures(tiny_run, batch):
    a, b = (measure(str(tiny_run), batch, 1, torch.float32) for _ in range(2))
    np.testing.assert_array_equal(a.forces, b.forces)
