"""The 6-layer IS2RE model itself: its equivariance, and structures of every kind."""

from __future__ import annotations

import pytest
import torch

from est_ocp.cli.config import instantiate, resolve
from tests.models import systems
from tests.training.launch import CONFIGS


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    config = resolve(str(CONFIGS / "is2re" / "est_6layer.yml"), [])
    return instantiate(config.runner.train_eval_unit.model, "the model").double().eval()


@torch.no_grad()
def test_rotation(made):
    """Fresh weights and 32 points: what is left is sampling in six EST blocks."""
    errors = []
    for seed in range(2):
        atoms = systems.slab(seed=seed)
        r = systems.rotation(seed + 1)
        before, after = (
            made.backbone(systems.collate([a]))["node_embedding"]
            for a in (atoms, systems.rotated(atoms, r))
        )
        errors.append(float((after - before).norm() / before.norm()))
    print(f"largest relative change of the last features: {max(errors):.1e}")
    assert max(errors) < 1e-4


@torch.no_grad()
def test_structures_of_every_kind_in_one_batch(made):
    atoms = [systems.slab(), systems.water(), systems.wire(), systems.single_atom()]
    energies = made(systems.collate(atoms))["energy"]["energy"]
    assert energies.shape == (4,)
    assert torch.isfinite(energies).all()
    assert energies.std() > 1e-3
