"""Head of the auxiliary task IS2RS: its vectors turn with the structure and can be learnt."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.models import ESTHydraModel, PositionDeltaHead
from tests.models import systems
from tests.tolerances import TOL

BACKBONE = {
    "model": "est_ocp.models.EquiformerEST",
    "irreps": "32x0e+16x1e",
    "num_layers": 1,
    "feature_channels": 32,
    "lmax_out": 1,
    "graph": {"cutoff": 4.5, "max_neighbors": 500},
    "num_distance_basis": 16,
    "message": {"num_heads": 2, "head": "8x0e+4x1e", "hidden": "32x0e+16x1e"},
    # Steerable experts alone: the parts of the update block that are equivariant without error.
    "update": {
        "hidden_channels": 16,
        "spherical_expert_channels": 16,
        "steerable_expert_channels": 8,
        "use_attention": False,
        "num_spherical_experts": 0,
    },
    "alpha_drop": 0.0,
}
HEADS = {
    "energy": {"module": "est_ocp.models.EnergyHead", "avg_num_nodes": 10.0},
    "position_delta": {"module": "est_ocp.models.PositionDeltaHead"},
}


def model(dtype: torch.dtype, **changes) -> ESTHydraModel:
    torch.manual_seed(0)
    made = ESTHydraModel(backbone=BACKBONE | changes, heads=HEADS, pass_through_head_outputs=False)
    return made.to(dtype).eval()


def vectors(made, data) -> torch.Tensor:
    return made(data)["position_delta"]["position_delta"]


@pytest.mark.parametrize("lmax_out", [0, 1])
def test_vectors_turn_with_the_structure(lmax_out):
    made, r = model(torch.float64, lmax_out=lmax_out), systems.rotation()
    atoms = systems.slab()
    found = vectors(made, systems.collate([atoms]))
    turned = vectors(made, systems.collate([systems.rotated(atoms, r)]))
    assert found.shape == (len(atoms), 3)
    assert found.abs().max() > 1e-3
    assert (turned - found @ r.T).abs().max() < TOL[torch.float64]


def test_a_single_atom_has_no_direction():
    made = model(torch.float64)
    assert vectors(made, systems.collate([systems.single_atom()])).abs().max() < 1e-12


def test_each_structure_of_a_batch_alone():
    made = model(torch.float64)
    both = [systems.slab(seed=0), systems.slab("Pd", seed=1)]
    together = vectors(made, systems.collate(both))
    alone = torch.cat([vectors(made, systems.collate([atoms])) for atoms in both])
    assert (together - alone).abs().max() < 1e-10


def test_noise_can_be_learnt_from_the_neighbours():
    """Displaced atoms of a lattice show their displacement: what noisy nodes train."""
    made = model(torch.float32).train()
    data = systems.collate([systems.slab(seed=s, rattle=0.0) for s in range(4)], torch.float32)
    target = 0.2 * torch.randn(data.pos.shape, generator=torch.Generator().manual_seed(1))
    data.pos = data.pos - target
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    errors = []
    for _ in range(60):
        loss = nn.functional.mse_loss(vectors(made, data), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    trivial = target.square().mean().item()
    assert errors[-1] < 0.5 * trivial


def test_a_backbone_without_vectors_is_refused():
    with pytest.raises(ConfigError, match="cannot read vectors from Identity; use the backbone"):
        PositionDeltaHead(nn.Identity())
