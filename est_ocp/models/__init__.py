"""Backbones and heads registered with fairchem, addressed by short name or dotted path."""

from __future__ import annotations

from est_ocp.models.equiformer import EquiformerBackbone, EquiformerBaseline, EquiformerEST
from est_ocp.models.equiformer_v2 import (
    EquiformerV2Backbone,
    EquiformerV2Baseline,
    EquiformerV2EST,
)
from est_ocp.models.escaip import EScAIPBaseline
from est_ocp.models.escn_md import ESCNMDBaseline
from est_ocp.models.est import ESTNetwork
from est_ocp.models.gotennet import GotenNetBackbone, GotenNetBaseline, GotenNetEST
from est_ocp.models.heads import BalanceHead, ConservativeHead, EnergyHead, ForceHead
from est_ocp.models.hydra import ESTHydraModel
from est_ocp.models.molecular_heads import MolecularPropertyHead
from est_ocp.models.position_head import PositionDeltaHead
from est_ocp.models.schnet import SchNetBaseline

__all__ = [
    "BalanceHead",
    "ConservativeHead",
    "ESCNMDBaseline",
    "ESTHydraModel",
    "ESTNetwork",
    "EScAIPBaseline",
    "EnergyHead",
    "EquiformerBackbone",
    "EquiformerBaseline",
    "EquiformerEST",
    "EquiformerV2Backbone",
    "EquiformerV2Baseline",
    "EquiformerV2EST",
    "ForceHead",
    "GotenNetBackbone",
    "GotenNetBaseline",
    "GotenNetEST",
    "MolecularPropertyHead",
    "PositionDeltaHead",
    "SchNetBaseline",
]
