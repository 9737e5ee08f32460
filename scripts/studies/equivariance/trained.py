"""Errors of checkpoints: as configured in both precisions, and with other points in the update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm

from equivariance.checkpoints import build, demo_structures, force_energy_errors, read_trained
from equivariance.molecules import batches, molecule_tensors, random_wigner, rotated
from equivariance.points import PointSet, ladder
from est_ocp.evaluation.equivariance import measure, random_rotations

#: Sizes of the points that are put in.
SIZES = (26, 50, 86, 146)
#: Takes the place of a message's own points, so that the update's error is what is seen.
PRECISE = {"kind": "lebedev", "num_points": 110}


def trained_errors(
    checkpoints: Sequence[str], count: int, num_rotations: int, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Yield rows of S2EF (energy and forces) and QM9 (target) checkpoints.

    Parameters
    ----------
    checkpoints : sequence of path
        Runs or inference checkpoints.
    count : int
        Structures: of the embedded demonstration set, or of QM9.
    num_rotations : int
    device : str
    """
    for number, checkpoint in enumerate(checkpoints, 1):
        config, weights = read_trained(checkpoint)
        task = "QM9" if "target" in config["heads"] else "S2EF"
        labels = {"checkpoint": number, "task": task}
        lmax = config["backbone"]["lmax"]
        if task == "S2EF":
            yield from _configured(checkpoint, labels, count, num_rotations, device)
        sets = ladder(SIZES, ())
        for points in tqdm(sets, desc=f"checkpoint {number}", mininterval=10):
            if points.size < 1.5 * (lmax + 1) ** 2:
                continue
            model = build(config, weights, _changes(points, task), device=device)
            if task == "S2EF":
                batch = demo_structures(count).to(device)
                rotations = random_rotations(num_rotations, seed=1)
                forces, prediction = force_energy_errors(model, batch, rotations)
            else:
                forces, prediction = None, _target_error(model, count, num_rotations, device)
            yield labels | _row(points.name, points.size, "float64", prediction, forces)


def _row(
    points: str, size: int | str, dtype: str, prediction: float, forces: float | None
) -> dict[str, Any]:
    return {
        "points": points,
        "S": size,
        "dtype": dtype,
        "prediction": prediction,
        "forces": "" if forces is None else forces,
    }


def _configured(
    checkpoint: str, labels: dict[str, Any], count: int, num_rotations: int, device: str
) -> Iterator[dict[str, Any]]:
    """Rows of the model with its own points, as the report of a run measures them."""
    for dtype in (torch.float64, torch.float32):
        errors = measure(checkpoint, demo_structures(count), num_rotations, dtype, device, seed=1)
        row = _row("as configured", "", errors.dtype, errors.energy.mean(), errors.forces.mean())
        yield labels | row


def _changes(points: PointSet, task: str) -> dict[str, dict[str, Any]]:
    """Settings that put points into the update, and precise ones into the message."""
    rule = {"kind": points.kind, "num_points": points.num_points}
    message = "rule" if task == "QM9" else "activation_rule"
    return {"update": {"rule": rule}, "message": {message: PRECISE}}


@torch.no_grad()
def _target_error(model: torch.nn.Module, count: int, num_rotations: int, device: str) -> float:
    """Mean change of a QM9 model's prediction over its standard deviation over molecules."""
    generator = torch.Generator().manual_seed(7)
    plain, changes = [], []
    for batch in batches(molecule_tensors(), count, 16, device):
        prediction = model(batch)["target"]["target"].reshape(-1)
        plain.append(prediction)
        for _ in range(num_rotations):
            wigner = random_wigner(len(prediction), 1, generator, device)
            turned = model(rotated(batch, wigner))["target"]["target"].reshape(-1)
            changes.append((turned - prediction).abs())
    return float(torch.cat(changes).mean() / torch.cat(plain).std())
