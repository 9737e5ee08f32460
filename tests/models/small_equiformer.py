"""Small Equiformer models for the tests, built as fairchem builds them."""

from __future__ import annotations

from typing import Any

import torch

from est_ocp.models import ESTHydraModel
from tests.models.small import merge

BACKBONE: dict[str, Any] = {
    "model": "est_ocp.models.EquiformerEST",
    "irreps": "16x0e+8x1e",
    "lmax_sh": 1,
    "num_layers": 2,
    "feature_channels": 12,
    "graph": {"cutoff": 4.5, "max_neighbors": 500},
    "num_distance_basis": 16,
    "message": {
        "num_heads": 2,
        "head": "8x0e+4x1e",
        "hidden": "16x0e+8x1e",
        "radial_channels": [8, 8],
    },
    "update": {
        "rule": {"kind": "lebedev", "num_points": 110},
        "hidden_channels": 12,
        "num_spherical_experts": 2,
        "spherical_expert_channels": 16,
        "num_steerable_experts": 2,
        "steerable_expert_channels": 8,
    },
    "alpha_drop": 0.0,
}
ENERGY = {"energy": {"module": "est_ocp.models.EnergyHead", "avg_num_nodes": 3.0}}
WITH_VECTORS = ENERGY | {"position_delta": {"module": "est_ocp.models.PositionDeltaHead"}}

FEED_FORWARD = {
    "model": "est_ocp.models.EquiformerBaseline",
    "update": {"hidden": "24x0e+12x1e"},
}


def model(
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    baseline: bool = False,
    vectors: bool = False,
    **changes: Any,
) -> ESTHydraModel:
    """A small model in evaluation mode; ``changes`` go into the backbone's configuration.

    ``vectors`` adds features of degree 1 to the output and the head that reads them.
    """
    torch.manual_seed(seed)
    base = {k: v for k, v in BACKBONE.items() if k != "update"} | FEED_FORWARD
    backbone = merge(base if baseline else BACKBONE, changes)
    if vectors:
        backbone["lmax_out"] = 1
    made = ESTHydraModel(backbone=backbone, heads=WITH_VECTORS if vectors else ENERGY)
    return made.to(dtype).eval()


def energies(made: ESTHydraModel, data) -> torch.Tensor:
    """Energies [B], detached."""
    return made(data)["energy"]["energy"].detach()


def both(made: ESTHydraModel, data) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies [B] and vectors [N, 3] of a model with vectors, detached."""
    out = made(data)
    return out["energy"]["energy"].detach(), out["position_delta"]["position_delta"].detach()
