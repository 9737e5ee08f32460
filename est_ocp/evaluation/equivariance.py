"""Error of equivariance of a trained model under rotations of the positions and the cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from est_ocp.evaluation.checkpoint import load_unit, quiet


@dataclass(frozen=True)
class EquivarianceErrors:
    """Relative errors of R rotations of B structures in one precision.

    Attributes
    ----------
    dtype : str
        ``float32`` or ``float64``.
    forces : array [R, B]
        ``|F(R x) - R F(x)| / |F(x)|``, norms over all atoms of a structure.
    energy : array [R, B]
        ``|E(R x) - E(x)|`` over the root mean square of the structures' energies.
    """

    dtype: str
    forces: np.ndarray
    energy: np.ndarray

    def summary(self) -> dict[str, float]:
        """Return medians and maxima."""
        return {
            "forces_median": float(np.median(self.forces)),
            "forces_max": float(np.max(self.forces)),
            "energy_median": float(np.median(self.energy)),
            "energy_max": float(np.max(self.energy)),
        }


def random_rotations(count: int, seed: int = 0) -> torch.Tensor:
    """Return rotation matrices [count, 3, 3], uniform over rotations, float64."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))
    q = q * torch.diagonal(r, dim1=1, dim2=2).sign()[:, None, :]
    return q * torch.linalg.det(q)[:, None, None]


def measure(
    checkpoint: str,
    batch: Any,
    num_rotations: int = 4,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
) -> EquivarianceErrors:
    """Measure a checkpoint's averaged weights on a batch of structures.

    Positions and cell are rotated together, in float64, before the model sees them.

    Parameters
    ----------
    checkpoint : str
        As for :func:`est_ocp.evaluation.load_unit`.
    batch : AtomicData
        B structures.
    num_rotations : int
    dtype : torch.dtype
        Precision of the model, float32 or float64.
    device : {"cpu", "cuda"}
    seed : int
        Of the rotations.
    """
    unit = load_unit(checkpoint, device=device, dtype=dtype)
    owner = batch.batch.cpu()
    size = len(batch.natoms)
    energy, forces = _predict(unit, batch, torch.eye(3, dtype=torch.float64))
    force_scale = _norms(forces, owner, size).clamp_min(1e-12)
    energy_scale = energy.square().mean().sqrt().clamp_min(1e-12)
    force_errors, energy_errors = [], []
    for rotation in random_rotations(num_rotations, seed):
        new_energy, new_forces = _predict(unit, batch, rotation)
        difference = new_forces - forces @ rotation.T
        force_errors.append((_norms(difference, owner, size) / force_scale).numpy())
        energy_errors.append(((new_energy - energy).abs() / energy_scale).numpy())
    return EquivarianceErrors(
        str(dtype).removeprefix("torch."), np.stack(force_errors), np.stack(energy_errors)
    )


def _predict(unit: Any, batch: Any, rotation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rotated = batch.clone()
    for key, value in batch:
        if torch.is_tensor(value) and value.is_floating_point():
            rotated[key] = value.double()
    rotated.pos = rotated.pos @ rotation.T
    rotated.cell = rotated.cell @ rotation.T
    with quiet():
        out = unit.predict(rotated)
    return out["energy"].detach().cpu().double().reshape(-1), out["forces"].detach().cpu().double()


def _norms(vectors: torch.Tensor, owner: torch.Tensor, size: int) -> torch.Tensor:
    squares = vectors.square().sum(1)
    return squares.new_zeros(size).index_add(0, owner, squares).sqrt()
