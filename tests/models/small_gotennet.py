"""Small GotenNet models for the tests, built as fairchem builds them."""

from __future__ import annotations

from typing import Any

import torch

from est_ocp.models import ESTHydraModel
from tests.models.small import merge

BACKBONE: dict[str, Any] = {
    "model": "est_ocp.models.GotenNetEST",
    "lmax": 2,
    "num_layers": 2,
    "channels": 8,
    "num_heads": 2,
    "num_distance_basis": 12,
    "lmax_out": 2,
    "alpha_drop": 0.0,
    "graph": {"cutoff": 4.0, "max_neighbors": 500},
    "update": {
        "rule": {"kind": "lebedev", "num_points": 110},
        "spherical_expert_channels": 16,
        "steerable_expert_channels": 8,
    },
}
BASELINE = {k: v for k, v in BACKBONE.items() if k != "update"} | {
    "model": "est_ocp.models.GotenNetBaseline"
}
ENERGY = {"energy": {"module": "est_ocp.models.EnergyHead", "avg_num_nodes": 3.0}}
CONSERVATIVE = {"efs": {"module": "est_ocp.models.ConservativeHead", "avg_num_nodes": 3.0}}


def model(
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    baseline: bool = False,
    conservative: bool = False,
    heads: dict | None = None,
    **changes: Any,
) -> ESTHydraModel:
    """A small model in evaluation mode; ``changes`` go into the backbone's configuration."""
    torch.manual_seed(seed)
    backbone = merge(BASELINE if baseline else BACKBONE, changes)
    if conservative:
        backbone |= {"regress_forces": True, "direct_forces": False}
    made = ESTHydraModel(
        backbone=backbone,
        heads=heads or (CONSERVATIVE if conservative else ENERGY),
        pass_through_head_outputs=conservative,
    )
    return made.to(dtype).eval()


def energies(made: ESTHydraModel, data) -> torch.Tensor:
    """Energies [B], detached."""
    return made(data)["energy"]["energy"].detach()


def features(made: ESTHydraModel, data) -> torch.Tensor:
    """The backbone's features [N, (lmax_out+1)**2, C], detached."""
    return made.backbone(data)["node_embedding"].detach()
