"""Errors of checkpoints: as configured, and with other points in the update; both precisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm

from equivariance.checkpoints import build, demo_structures, force_energy_errors, read_trained
from equivariance.molecules import batches, cast, molecule_tensors, random_wigner, rotated
from equivariance.points import PointSet, ladder
from equivariance.sweep import DTYPES
from est_ocp.evaluation.equivariance import measure, random_rotations

#: Takes the place of a message's own points, so that the update's error is what is seen.
PRECISE = {"kind": "lebedev", "num_points": 110}


def trained_errors(
    checkpoints: Sequence[str],
    structures: int,
    molecules: int,
    num_rotations: int,
    device: str = "cpu",
    sets: Sequence[PointSet] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield rows of S2EF (energy and forces) and QM9 (target) checkpoints.

    Parameters
    ----------
    checkpoints : sequence of path
        Runs or inference checkpoints.
    structures, molecules : int
        Of the embedded demonstration set, for S2EF, and of QM9.
    num_rotations : int
    device : str
    sets : sequence of PointSet, optional
        Default: all.
    """
    for number, checkpoint in enumerate(checkpoints, 1):
        config, weights, scales = read_trained(checkpoint)
        task = "QM9" if "target" in config["heads"] else "S2EF"
        labels = {"checkpoint": number, "task": task}
        lmax = config["backbone"]["lmax"]
        if task == "S2EF":
            yield from _configured(checkpoint, labels, structures, num_rotations, device)
        cases = [
            (points, dtype)
            for points in (ladder() if sets is None else sets)
            for dtype in DTYPES
            if points.size >= 1.5 * (lmax + 1) ** 2
        ]
        for points, dtype in tqdm(cases, desc=f"checkpoint {number}", mininterval=10):
            model = build(config, weights, _changes(points, task), device=device)
            model.to(DTYPES[dtype])
            if task == "S2EF":
                batch = demo_structures(structures).to(device)
                rotations = random_rotations(num_rotations, seed=1)
                errors = force_energy_errors(model, batch, rotations, scales)
            else:
                errors = _target_errors(model, molecules, num_rotations, device, scales["target"])
            row = {"points": points.name, "S": points.size, "dtype": dtype}
            yield labels | row | _EMPTY | errors


#: Columns of errors; an energy model has none of forces, and reports have no absolute ones.
_EMPTY = dict.fromkeys(("prediction", "forces", "prediction_absolute", "forces_absolute"), "")


def _configured(
    checkpoint: str, labels: dict[str, Any], count: int, num_rotations: int, device: str
) -> Iterator[dict[str, Any]]:
    """Rows of the model with its own points, as the report of a run measures them."""
    for dtype in DTYPES.values():
        errors = measure(checkpoint, demo_structures(count), num_rotations, dtype, device, seed=1)
        row = {"points": "as configured", "S": "", "dtype": errors.dtype}
        means = {"prediction": errors.energy.mean(), "forces": errors.forces.mean()}
        yield labels | row | _EMPTY | means


def _changes(points: PointSet, task: str) -> dict[str, dict[str, Any]]:
    """Settings that put points into the update, and precise ones into the message."""
    number = points.num_points if isinstance(points.num_points, int) else list(points.num_points)
    update = {"rule": {"kind": points.kind, "num_points": number}}
    if not points.quadrature:
        update["quadrature"] = False
    message = "rule" if task == "QM9" else "activation_rule"
    return {"update": update, "message": {message: PRECISE}}


@torch.no_grad()
def _target_errors(
    model: torch.nn.Module, count: int, num_rotations: int, device: str, scale: float
) -> dict[str, float]:
    """Mean change of a QM9 model's prediction, and over its deviation over the molecules."""
    generator = torch.Generator().manual_seed(7)
    dtype = next(model.parameters()).dtype
    plain, changes = [], []

    def predict(batch: Any) -> torch.Tensor:
        return model(cast(batch, dtype))["target"]["target"].reshape(-1).double()

    for batch in batches(molecule_tensors(), count, 16, device):
        prediction = predict(batch)
        plain.append(prediction)
        for _ in range(num_rotations):
            wigner = random_wigner(len(prediction), 1, generator, device)
            changes.append((predict(rotated(batch, wigner)) - prediction).abs())
    change = float(torch.cat(changes).mean())
    return {
        "prediction": change / float(torch.cat(plain).std()),
        "prediction_absolute": scale * change,
    }
