"""Equivariance error of a whole S2EF model, and which part of it the error comes from.

    python scripts/studies/s2ef_equivariance.py --config configs/s2ef/est_8layer.yml
    python scripts/studies/s2ef_equivariance.py --checkpoint runs/ID

Structures of the demonstration set are rotated with their cells, in float64. Without a checkpoint
the weights are random, all linear maps multiplied by ``--scale`` to stand for training. The
model's points are exchanged part by part (weights do not depend on them): the part under test
gets the points of its row, the other 590 Lebedev points, which leave an error below 1e-5. Writes
``s2ef_equivariance.csv`` and ``s2ef_equivariance.md``.
"""

from __future__ import annotations

import argparse
import csv
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from equivariance.checkpoints import build, demo_structures, force_energy_errors, read_trained
from tqdm import tqdm

REFERENCE = {"kind": "lebedev", "num_points": 590}


@dataclass(frozen=True)
class Row:
    """One model of the table: what is tested, and the changes of the backbone's settings."""

    part: str
    points: str
    update: dict[str, Any] = field(default_factory=dict)
    message: dict[str, Any] = field(default_factory=dict)
    graph: dict[str, Any] = field(default_factory=dict)


def rule(kind: str, num_points: Any) -> dict[str, Any]:
    """Settings of a point set."""
    return {"kind": kind, "num_points": num_points}


def rows(quick: bool = False) -> list[Row]:
    """Every model of the table."""
    est = [
        *(("fibonacci", n) for n in (90, 128)),
        *(("repulsion", n) for n in (90, 128)),
        *(("design", n) for n in (90, 128)),
        *(("lebedev", n) for n in (86, 110, 146, 194)),
    ]
    host = [("product", [18, 18]), *(("lebedev", n) for n in (50, 86, 110, 194))]
    if quick:
        est, host = [("fibonacci", 48), ("lebedev", 50)], [("lebedev", 50)]
    update, message = {"rule": REFERENCE}, {"activation_rule": REFERENCE}
    table = [
        Row(
            f"EST update, norm over the {norm}",
            f"{k} {n}",
            {"rule": rule(k, n), "norm": norm},
            message,
        )
        for norm in ("sphere", "point")
        for k, n in est
    ]
    table += [
        Row("S2 activation of the message", f"{k} {n}", update, {"activation_rule": rule(k, n)})
        for k, n in host
    ]
    return [
        *table,
        Row("neighbours, ties kept", "-", update, message),
        Row("neighbours, strict number", "-", update, message, {"strict_max_neighbors": True}),
        Row("whole model as configured", "its own"),
    ]


def load(arguments: argparse.Namespace) -> tuple[Any, dict | None, dict[str, float]]:
    """Configuration of the model, weights to load (None: random), and units of its outputs."""
    if arguments.checkpoint:
        return read_trained(arguments.checkpoint)
    from fairchem.core._cli import get_hydra_config_from_yaml
    from omegaconf import OmegaConf

    config = get_hydra_config_from_yaml(arguments.config, arguments.overrides)
    model = OmegaConf.to_container(config.runner.train_eval_unit.model)
    return model, None, {"energy": 1.0, "forces": 1.0}


def main(argv: list[str] | None = None) -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/s2ef/est_8layer.yml")
    parser.add_argument(
        "--checkpoint", help="a run or inference checkpoint; random weights if absent"
    )
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--structures", type=int, default=2)
    parser.add_argument("--rotations", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.5, help="of random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="few rows, to see the command work")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of the configuration")
    arguments = parser.parse_args(argv)

    from est_ocp.evaluation.equivariance import random_rotations

    config, weights, scales = load(arguments)
    batch = demo_structures(arguments.structures).to(arguments.device)
    rotations = random_rotations(arguments.rotations, seed=1)
    results = []
    for row in tqdm(rows(arguments.quick), desc="models"):
        changes = {part: getattr(row, part) for part in ("update", "message", "graph")}
        model = build(config, weights, changes, arguments.scale, arguments.device)
        errors = force_energy_errors(model, batch, rotations, scales)
        results.append((row, errors["forces"], errors["prediction"]))
    write(results, arguments)


def write(results: list[tuple[Row, float, float]], arguments: argparse.Namespace) -> None:
    """CSV and Markdown."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / "s2ef_equivariance.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "points", "force_error", "energy_error"])
        writer.writerows([row.part, row.points, f, e] for row, f, e in results)
    device = platform.processor() or platform.machine()
    if arguments.device == "cuda":
        device = torch.cuda.get_device_name()
    what = arguments.checkpoint or f"random weights x {arguments.scale}"
    lines = [
        f"{arguments.config if not arguments.checkpoint else 'trained weights'}, {what}; "
        f"{arguments.structures} structures, {arguments.rotations} rotations, float64, {device}.",
        "",
        "| what is sampled | points | forces | energy |",
        "|---|---|---|---|",
        *(f"| {row.part} | {row.points} | {f:.1e} | {e:.1e} |" for row, f, e in results),
    ]
    text = "\n".join(lines) + "\n"
    (arguments.output / "s2ef_equivariance.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
