"""Conservative forces of random structures are the numerical gradient of the energy."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from est_ocp.models import ConservativeHead
from tests.models.every_backbone import BACKBONES, CONSERVATIVE
from tests.properties.energy import collate, energies, energy_and_gradient, energy_model
from tests.properties.profile import examples
from tests.properties.structures import structures
from tests.tolerances import INVARIANCE_EXACT, NUMERICAL_GRADIENT

#: Angstrom; the step of the differences, along a direction of unit length in all coordinates. Norms
#: make energies steep where all features are faint: with 1e-4 the differences are wrong by 5e-5.
STEP = 1e-5


@examples(6)
@pytest.mark.parametrize("name", BACKBONES)
@given(structures(max_atoms=30), st.integers(0, 2**32 - 1))
def test_gradients_equal_central_differences(name, atoms, seed):
    model = energy_model(name, envelope=True)
    direction = np.random.default_rng(seed).normal(size=(len(atoms), 3))
    direction /= np.linalg.norm(direction)
    ahead, behind = atoms.copy(), atoms.copy()
    ahead.positions += STEP * direction
    behind.positions -= STEP * direction
    there, back = energies(model, ahead), energies(model, behind)
    numerical = (there - back).item() / (2 * STEP)
    _, gradient = energy_and_gradient(model, atoms)
    exact = (gradient.numpy() * direction).sum()
    assert abs(numerical - exact) < NUMERICAL_GRADIENT * (1 + abs(exact))


@cache
def conservative_model(name: str) -> tuple[nn.Module, ConservativeHead]:
    backbone = BACKBONES[name](graph={"envelope": True}, direct_forces=False).double()
    torch.manual_seed(1)
    return backbone, ConservativeHead(backbone, avg_num_nodes=1.0).double().eval()


def head_outputs(name: str, atoms: Atoms) -> tuple[torch.Tensor, torch.Tensor]:
    backbone, head = conservative_model(name)
    data = collate([atoms])
    out = head(data, backbone(data))
    return out["energy"]["energy"].detach(), out["forces"]["forces"].detach()


@pytest.mark.parametrize("name", sorted(CONSERVATIVE))
@examples(4)
@given(structures(max_atoms=30))
def test_the_conservative_head_returns_minus_the_gradient(name, atoms):
    """Also for single atoms and empty graphs, whose forces are zero."""
    energy, forces = head_outputs(name, atoms)
    expected, gradient = energy_and_gradient(energy_model(name, envelope=True), atoms)
    torch.testing.assert_close(energy.sum(), expected, atol=INVARIANCE_EXACT, rtol=1e-9)
    torch.testing.assert_close(forces, -gradient, atol=INVARIANCE_EXACT, rtol=1e-9)
    assert forces.sum(dim=0).abs().max() < 1e-8 * (1 + forces.abs().max())
