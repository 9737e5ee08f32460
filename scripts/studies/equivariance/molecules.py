"""Molecules of QM9 as one batch, and the same batch rotated."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from est_ocp.data.qm9_edges import radius_edges
from est_ocp.data.qm9_subset import read_subset
from est_ocp.data.qm9_tensors import MoleculeTensors
from est_ocp.models.graph import EDGE_INDEX, EDGE_VEC
from est_ocp.nn.random_rotation import RandomRotation
from est_ocp.qm9_targets import TARGETS

#: Cutoff of the QM9 models, Angstrom.
CUTOFF = 5.0


def molecule_tensors(target: str = "alpha") -> MoleculeTensors:
    """The embedded 2,000 molecules with edges and the labels of one target, shuffled."""
    molecules = read_subset()
    molecules = molecules.take(np.random.default_rng(0).permutation(len(molecules)))
    labels = molecules.targets[:, list(TARGETS).index(target)]
    return MoleculeTensors.of(molecules, labels, radius_edges(molecules, CUTOFF))


def batches(tensors: MoleculeTensors, count: int, size: int, device: str = "cpu") -> list[Any]:
    """The first molecules in batches, positions in float64."""
    found = []
    for start in range(0, count, size):
        chosen = torch.arange(start, min(start + size, count))
        batch = tensors.batch(chosen, ["qm9"] * len(chosen))
        found.append(cast(batch.to(device), torch.float64))
    return found


def random_wigner(
    count: int, lmax: int, generator: torch.Generator, device: str = "cpu"
) -> torch.Tensor:
    """Wigner matrices [count, (lmax+1)**2, (lmax+1)**2] of random rotations, float64.

    Rotations of one generator's state are the same for all ``lmax``; components 1 to 3 (degree 1)
    are the rotation matrices.
    """
    quaternion = torch.randn(count, 4, dtype=torch.float64, generator=generator)
    return RandomRotation(lmax).double().wigner(quaternion).to(device)


def with_positions(batch: Any, pos: torch.Tensor) -> Any:
    """The same molecules and edges at other positions [N, 3], in their dtype."""
    moved = copy.copy(batch)
    moved.__keys__ = set(batch.__keys__)
    moved.pos = pos
    source, target = batch[EDGE_INDEX]
    moved[EDGE_VEC] = pos[source] - pos[target]
    return moved


def rotated(batch: Any, wigner: torch.Tensor) -> Any:
    """The batch with one rotation a molecule, given as Wigner matrices [B, I, I]."""
    rotation = wigner[:, 1:4, 1:4][batch.batch]
    return with_positions(batch, (rotation @ batch.pos[:, :, None])[:, :, 0])


def cast(batch: Any, dtype: torch.dtype) -> Any:
    """The batch with positions in another precision."""
    return with_positions(batch, batch.pos.to(dtype))
