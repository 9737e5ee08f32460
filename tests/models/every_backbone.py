"""A small instance of every backbone that the package registers, for tests that hold for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from est_ocp.models import (
    EquiformerBaseline,
    EquiformerEST,
    EquiformerV2Baseline,
    EquiformerV2EST,
    ESCNMDBaseline,
    ESTNetwork,
    GotenNetBaseline,
    GotenNetEST,
    SchNetBaseline,
)
from tests.models.small import merge

#: No neighbour is ever left out: truncation is neither smooth nor exact where distances tie.
GRAPH = {"cutoff": 3.5, "max_neighbors": 100_000}

#: Points enough that what is left of sampling errors is small, see `tests/tolerances.py`.
FINE_RULE = {"kind": "lebedev", "num_points": 194}

EST_UPDATE: dict[str, Any] = {
    "rule": FINE_RULE,
    "num_spherical_experts": 2,
    "spherical_expert_channels": 8,
    "num_steerable_experts": 2,
    "steerable_expert_channels": 6,
}
EQUIFORMER_V2: dict[str, Any] = {
    "lmax": 2,
    "mmax": 1,
    "num_layers": 2,
    "channels": 6,
    "graph": GRAPH,
    "num_distance_basis": 8,
    "message": {
        "hidden_channels": 4,
        "num_heads": 2,
        "alpha_channels": 4,
        "value_channels": 3,
        "edge_channels": 6,
        "activation_rule": FINE_RULE,
    },
}
EQUIFORMER: dict[str, Any] = {
    "irreps": "8x0e+4x1e",
    "num_layers": 2,
    "feature_channels": 6,
    "graph": GRAPH,
    "num_distance_basis": 8,
    "message": {
        "num_heads": 2,
        "head": "4x0e+2x1e",
        "hidden": "8x0e+4x1e",
        "radial_channels": [6, 6],
    },
}
EST: dict[str, Any] = {
    "lmax": 2,
    "num_layers": 2,
    "channels": 6,
    "regress_forces": True,
    "graph": GRAPH,
    "num_distance_basis": 8,
    "edge_channels": 6,
    "message": {
        # Every edge pays for these points.
        "rule": {"kind": "lebedev", "num_points": 86},
        "hidden_channels": 4,
        "num_spherical_experts": 1,
        "spherical_expert_channels": 4,
        "num_steerable_experts": 2,
        "steerable_expert_channels": 4,
        "radial_channels": [6],
    },
    "update": EST_UPDATE,
}
GOTENNET: dict[str, Any] = {
    "lmax": 2,
    "num_layers": 2,
    "channels": 6,
    "num_heads": 2,
    "graph": GRAPH,
    "num_distance_basis": 8,
    "regress_forces": True,
}
SCHNET: dict[str, Any] = {
    "channels": 8,
    "filter_channels": 6,
    "num_layers": 2,
    "num_distance_basis": 10,
    "graph": GRAPH,
}
#: Gates alone: fairchem's products of grids leave sampling errors, as its own choice of points.
ESCN_MD: dict[str, Any] = {
    "sphere_channels": 8,
    "hidden_channels": 6,
    "edge_channels": 6,
    "lmax": 2,
    "mmax": 1,
    "num_layers": 2,
    "num_distance_basis": 8,
    "ff_type": "spectral",
    "graph": GRAPH,
}


def maker(cls: type[nn.Module], settings: dict[str, Any]) -> Callable[..., nn.Module]:
    """Return a function that builds ``cls``; its keyword arguments are merged into `settings`."""

    def make(**changes: Any) -> nn.Module:
        torch.manual_seed(0)
        return cls(**merge(settings, changes)).eval()

    return make


#: Invariant under rotation up to the sampling of functions on the sphere; the others exactly.
SAMPLED = {"est_eqv2", "eqv2", "est_equiformer", "est", "est_gotennet"}

#: Those that take ``direct_forces=False``, for :class:`est_ocp.models.ConservativeHead`.
CONSERVATIVE = {"est_eqv2", "eqv2", "est", "est_gotennet", "gotennet"}

#: By registered name. Called without arguments, or with changes of settings, such as
#: ``graph={"envelope": True}``; float32, in evaluation mode, always the same weights.
BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "est_eqv2": maker(EquiformerV2EST, EQUIFORMER_V2 | {"update": EST_UPDATE}),
    "eqv2": maker(
        EquiformerV2Baseline,
        EQUIFORMER_V2 | {"update": {"hidden_channels": 6, "rule": FINE_RULE}},
    ),
    "est_equiformer": maker(
        EquiformerEST, EQUIFORMER | {"update": EST_UPDATE | {"hidden_channels": 6}}
    ),
    "equiformer": maker(EquiformerBaseline, EQUIFORMER | {"update": {"hidden": "12x0e+6x1e"}}),
    "est": maker(ESTNetwork, EST),
    "est_gotennet": maker(
        GotenNetEST,
        GOTENNET
        | {"update": EST_UPDATE | {"num_spherical_experts": 1, "num_steerable_experts": 1}},
    ),
    "gotennet": maker(GotenNetBaseline, GOTENNET),
    "est_schnet": maker(SchNetBaseline, SCHNET),
    "est_escn_md": maker(ESCNMDBaseline, ESCN_MD),
}
