"""One training of the study through fairchem's trainer, and its errors on validation and test."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]

#: Config in configs/qm9/ to its name in tables; a host stands before its EST variant.
LABELS = {
    "equiformer": "Equiformer",
    "est_ga": "Equiformer + EST (EST + GA)",
    "gotennet": "GotenNet",
    "est_gata": "GotenNet + EST (EST + GATA)",
    "est": "EST",
    "escn_md": "eSCN-MD",
    "schnet": "SchNet",
    "debug": "EST, smallest",
}
#: Host to the same model with EST's update in place of its feed-forward.
PAIRS = {"equiformer": "est_ga", "gotennet": "est_gata"}
#: Equiformer's other group of targets, with its dropout of attention weights.
BESSEL_TARGETS = {"r2": 0.1, "zpve": 0.2, "U0": 0.0, "U": 0.0, "H": 0.0, "G": 0.0}
#: Models whose layers can be compiled.
COMPILED = ("equiformer", "est_ga", "gotennet", "est_gata", "est")


@dataclass(frozen=True)
class Training:
    """What one training is."""

    model: str
    target: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.target}-{self.model}-seed{self.seed}"


@dataclass(frozen=True)
class Settings:
    """What all trainings share."""

    out: str
    data: str
    seconds: float = 420.0
    batch_size: int = 128
    device: str = "cpu"
    loader_workers: int = 4
    compile_layers: str = "never"
    evaluations: int = 10
    overrides: Sequence[str] = field(default_factory=tuple)


def overrides(training: Training, settings: Settings) -> list[str]:
    """Everything in which the training differs from its config."""
    model = training.model
    words = [
        f"data.target={training.target}",
        f"data.root={Path(settings.data).resolve()}",
        f"cluster=local_{'gpu' if settings.device == 'cuda' else 'cpu'}",
        f"cluster.num_workers={settings.loader_workers}",
        "optim=qm9_short",
        "+budget=wall_clock",
        f"seconds={settings.seconds}",
        f"evaluations={settings.evaluations}",
        f"batch_size={settings.batch_size}",
        "eval_batch_size=500",
        "max_eval_batches=null",
        "checkpoint_every=1000000",
        f"job.seed={training.seed}",
        f"batching.train.seed={training.seed}",
        f"job.run_dir={Path(settings.out).resolve() / 'runs'}",
        f"job.timestamp_id={training.name}",
    ]
    if model in ("equiformer", "est_ga", "est") and training.target in BESSEL_TARGETS:
        words += ["model.backbone.distance_basis=bessel", "model.backbone.num_distance_basis=8"]
        if model != "est":
            words.append(f"model.backbone.alpha_drop={BESSEL_TARGETS[training.target]}")
    if model in COMPILED:
        words.append(f"model.backbone.compile_layers={settings.compile_layers}")
    return [*words, *settings.overrides]


def run(training: Training, settings: Settings) -> dict[str, Any]:
    """Train anew, evaluate the averaged weights, and return the row and the curve.

    Returns
    -------
    dict
        ``row`` for the table and ``curve``, a list of rows, of :mod:`qm9study.report`.
    """
    import torch
    from fairchem.core._cli import main
    from fairchem.core.common import distutils
    from hydra.core.global_hydra import GlobalHydra

    from est_ocp.cli.config import instantiate, resolve
    from est_ocp.evaluation.molecules import evaluate_molecules
    from est_ocp.training import metrics_file

    started = time.perf_counter()
    run_dir = Path(settings.out).resolve() / "runs" / training.name
    shutil.rmtree(run_dir, ignore_errors=True)
    config = str(ROOT / "configs" / "qm9" / f"{training.model}.yml")
    distutils.cleanup()
    GlobalHydra.instance().clear()
    try:
        main(argparse.Namespace(config=config), overrides(training, settings))
    finally:
        distutils.cleanup()
        # fairchem points this at the run's log folder.
        os.environ.pop("WANDB_DIR", None)
    resolved = resolve(run_dir / "canonical_config.yaml")
    errors = evaluate_molecules(
        run_dir, resolved, run_dir / "results" / "predictions", device=settings.device
    )[training.target]
    model = instantiate(resolved.runner.train_eval_unit.model, "the model")
    rows = metrics_file.read(run_dir / metrics_file.FILE_NAME)
    curve, seconds, timed_steps = curve_of(rows, errors.target.table_factor)
    steps = curve[-1]["step"]
    same = {"target": training.target, "model": training.model, "seed": training.seed}
    per_epoch = train_size(settings.data) / settings.batch_size
    return {
        "row": same
        | {
            "test_mae": errors.mae["test"],
            "val_mae": errors.mae["val"],
            "unit": errors.target.table_unit,
            "parameters": sum(p.numel() for p in model.parameters()),
            "batch_size": settings.batch_size,
            "steps": steps,
            "epochs": round(steps / per_epoch, 3),
            "train_seconds": round(seconds, 1),
            "all_seconds": round(time.perf_counter() - started, 1),
            "molecules_per_second": round(timed_steps * settings.batch_size / seconds, 1),
            "card": card(settings.device),
            "torch": torch.__version__,
        },
        "curve": [same | point for point in curve],
    }


def curve_of(rows: list[dict[str, Any]], factor: float) -> tuple[list[dict[str, Any]], float, int]:
    """Return validation errors against seconds of training, those seconds in all, and their steps.

    Neither evaluations count nor the first steps, in which layers are compiled.

    Parameters
    ----------
    rows : list of dict
        Of ``metrics.jsonl``.
    factor : float
        Table unit per unit.
    """
    clock = {row["step"]: row for row in rows if row["kind"] == "clock"}
    points = []
    for row in (row for row in rows if row["kind"] == "eval"):
        mae, trained = row["splits"]["val"]["target_mae"], clock[row["step"]]["trained"]
        points.append({"seconds": trained, "step": row["step"], "val_mae": mae * factor})
    last = clock[max(clock)]
    return points, last["trained"], last["timed_steps"]


def train_size(data: str) -> int:
    """Molecules of the training set."""
    from est_ocp.data.qm9_lmdb import read_summary

    return read_summary(data)["molecules"]["train"]


def card(device: str) -> str:
    """Name of the GPU, or of the processor's kind."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return f"{os.cpu_count()}-core {platform.machine()} CPU"
