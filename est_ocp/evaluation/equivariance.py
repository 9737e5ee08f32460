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
    forces : array [R, B] or None
        ``|F(R x) - R F(x)| / |F(x)|``, norms over all atoms of a structure; None for a model
        without forces.
    energy : array [R, B]
        ``|E(R x) - E(x)|`` over the root mean square of the structures' energies.
    """

    dtype: str
    forces: np.ndarray | None
    energy: np.ndarray

    def summary(self) -> dict[str, float]:
        """Return medians and maxima."""
        return {
            f"{kind}_{name}": float(reduce(values))
            for kind, values in self.by_kind().items()
            for name, reduce in (("median", np.median), ("max", np.max))
        }

    def by_kind(self) -> dict[str, np.ndarray]:
        """Return the errors of what the model predicts."""
        kinds = {"forces": self.forces, "energy": self.energy}
        return {kind: values for kind, values in kinds.items() if values is not None}


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
    if forces is not None:
        force_scale = _norms(forces, owner, size).clamp_min(1e-12)
    energy_scale = energy.square().mean().sqrt().clamp_min(1e-12)
    force_errors, energy_errors = [], []
    for rotation in random_rotations(num_rotations, seed):
        new_energy, new_forces = _predict(unit, batch, rotation)
        if forces is not None:
            difference = new_forces - forces @ rotation.T
            force_errors.append((_norms(difference, owner, size) / force_scale).numpy())
        energy_errors.append(((new_energy - energy).abs() / energy_scale).numpy())
    return EquivarianceErrors(
        str(dtype).removeprefix("torch."),
        np.stack(force_errors) if force_errors else None,
        np.stack(energy_errors),
    )


def _predict(
    unit: Any, batch: Any, rotation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    rotated = batch.clone()
    for key, value in batch:
        if torch.is_tensor(value) and value.is_floating_point():
            rotated[key] = value.double()
    rotated.pos = rotated.pos @ rotation.T
    rotated.cell = rotated.cell @ rotation.T
    with quiet():
        out = unit.predict(rotated)
    energy, forces = (
        out[key].detach().cpu().double() if key in out else None for key in ("energy", "forces")
    )
    return energy.reshape(-1), forces


def _norms(vectors: torch.Tensor, owner: torch.Tensor, size: int) -> torch.Tensor:
    squares = vectors.square().sum(1)
    return squares.new_zeros(size).index_add(0, owner, squares).sqrt()
