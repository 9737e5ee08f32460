"""Small models for the tests, built as fairchem builds them: from nested configuration."""

from __future__ import annotations

import copy
from typing import Any

import torch

from est_ocp.models import ESTHydraModel

BACKBONE: dict[str, Any] = {
    "model": "est_ocp.models.EquiformerV2EST",
    "lmax": 2,
    "mmax": 2,
    "num_layers": 2,
    "channels": 8,
    "num_distance_basis": 16,
    "graph": {"cutoff": 4.5, "max_neighbors": 500},
    "message": {
        "hidden_channels": 8,
        "num_heads": 2,
        "alpha_channels": 4,
        "value_channels": 4,
        "edge_channels": 8,
        "activation_rule": {"kind": "lebedev", "num_points": 110},
    },
    "update": {
        "rule": {"kind": "lebedev", "num_points": 110},
        "num_spherical_experts": 2,
        "spherical_expert_channels": 16,
        "num_steerable_experts": 2,
        "steerable_expert_channels": 8,
    },
}
HEADS = {
    "energy": {"module": "est_ocp.models.EnergyHead", "avg_num_nodes": 10.0},
    "forces": {"module": "est_ocp.models.ForceHead"},
}
CONSERVATIVE = {
    "efs": {"module": "est_ocp.models.ConservativeHead", "avg_num_nodes": 10.0},
}


def merge(base: dict, changes: dict) -> dict:
    """Nested update of a copy."""
    out = copy.deepcopy(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if nested else value
    return out


def model(
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    conservative: bool = False,
    heads: dict | None = None,
    base: dict = BACKBONE,
    **changes: Any,
) -> ESTHydraModel:
    """A small model in evaluation mode; ``changes`` go into the backbone's configuration."""
    torch.manual_seed(seed)
    backbone = merge(base, changes)
    if conservative:
        backbone["direct_forces"] = False
    made = ESTHydraModel(
        backbone=backbone,
        heads=heads or (CONSERVATIVE if conservative else HEADS),
        pass_through_head_outputs=conservative,
    )
    return made.to(dtype).eval()


def outputs(made: ESTHydraModel, data) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies [B] and forces [N, 3], detached."""
    out = made(data)
    return out["energy"]["energy"].detach(), out["forces"]["forces"].detach()
