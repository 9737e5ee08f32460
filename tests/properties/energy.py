"""Energies and their gradients of every backbone, in float64."""

from __future__ import annotations

from functools import cache

import torch
from ase import Atoms
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
from torch import nn

from est_ocp.models import EnergyHead
from tests.models.every_backbone import BACKBONES


class EnergyModel(nn.Module):
    """A backbone and the energy head; the sum over atoms is not divided."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = EnergyHead(backbone, avg_num_nodes=1.0)

    def forward(self, data: AtomicData) -> torch.Tensor:
        """Energies [B]."""
        return self.head(data, self.backbone(data))["energy"]


@cache
def energy_model(name: str, envelope: bool = False) -> EnergyModel:
    """The model of a backbone's name, in float64, built once."""
    backbone = BACKBONES[name](graph={"envelope": envelope})
    torch.manual_seed(1)
    return EnergyModel(backbone).double().eval().requires_grad_(False)


def collate(systems: list[Atoms], dtype: torch.dtype = torch.float64) -> AtomicData:
    """Batch structures with the positions and cells that they have.

    fairchem's conversion alone would wrap the atoms and refuse vectors that are zero.
    """
    converted = []
    for atoms in systems:
        free = Atoms(atoms.numbers, positions=atoms.positions)
        data = AtomicData.from_ase(free, task_name="oc20", target_dtype=dtype)
        data.pos = torch.tensor(atoms.positions, dtype=dtype)
        data.cell = torch.tensor(atoms.cell.array, dtype=dtype)[None]
        data.pbc = torch.tensor(atoms.pbc)[None]
        converted.append(data)
    return atomicdata_list_to_batch(converted)


@torch.no_grad()
def energies(model: EnergyModel, *systems: Atoms) -> torch.Tensor:
    """Energies [B] of one batch."""
    return model(collate(list(systems)))


def energy_and_gradient(model: EnergyModel, atoms: Atoms) -> tuple[torch.Tensor, torch.Tensor]:
    """Energy [] and its gradient [N, 3] with respect to the positions."""
    data = collate([atoms])
    data.pos.requires_grad_(True)
    energy = model(data).sum()
    if not energy.requires_grad:
        return energy, torch.zeros_like(data.pos)
    (gradient,) = torch.autograd.grad(energy, data.pos, allow_unused=True)
    return energy.detach(), torch.zeros_like(data.pos) if gradient is None else gradient
