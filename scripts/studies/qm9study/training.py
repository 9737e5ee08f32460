"""One training of the study through fairchem's trainer, and its errors on validation and test."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairchem_run import run_fairchem
from gpu_turn import turn_overrides, waited

from qm9study.models import COMPILED, config_of, settings_of_target

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Training:
    """What one training is.

    Attributes
    ----------
    model : str
        Of :data:`qm9study.models.LABELS`.
    target : str
        One of QM9's, or "all".
    seed : int
    seconds : float
        Of training.
    lr : float, optional
        Peak learning rate. None: that of optim=qm9_short.
    sweep : bool
        One that only serves the choice of the learning rate: no errors on the test set.
    """

    model: str
    target: str
    seed: int
    seconds: float = 420.0
    lr: float | None = None
    sweep: bool = False

    @property
    def key(self) -> tuple[str, str, int, float, str]:
        """What makes two trainings the same one; the best rate of a sweep is no part of it."""
        lr = f"{self.lr:g}" if self.sweep and self.lr is not None else ""
        return (self.target, self.model, self.seed, float(self.seconds), lr)

    @property
    def name(self) -> str:
        """Name of its folder."""
        words = [self.target, self.model, f"seed{self.seed}", f"{self.seconds:g}s"]
        return "-".join(words + ([f"lr{self.lr:g}"] if self.sweep else []))


@dataclass(frozen=True)
class Settings:
    """What all trainings share.

    Attributes
    ----------
    pause_after : float, optional
        A training that is longer ends its process after so many seconds of training, to go on in
        the next call.
    per_gpu : int
        Trainings at once on one GPU; only noted here.
    """

    out: str
    data: str
    batch_size: int = 128
    device: str = "cpu"
    loader_workers: int = 4
    compile_layers: str = "never"
    cuda_graphs: str = "never"
    bf16: bool = False
    untimed_steps: int = 10
    evaluations: int = 10
    eval_batches: int | None = None
    pause_after: float | None = None
    per_gpu: int = 1
    overrides: Sequence[str] = field(default_factory=tuple)

    def speed(self, capturable: bool) -> str:
        """How a training was made fast, for tables; not all models can be captured."""
        words = ["bf16" if self.bf16 else "tf32"]
        words += ["compiled"] * (self.compile_layers != "never")
        words += ["CUDA graphs"] * (capturable and self.cuda_graphs != "never")
        return ", ".join(words) if self.device == "cuda" else "fp32"


def overrides(training: Training, settings: Settings) -> list[str]:
    """Everything in which the training differs from its config."""
    config, changes = config_of(training.model)
    words = [
        *settings_of_target(config, training.target),
        *changes,
        f"data.root={Path(settings.data).resolve()}",
        f"cluster=local_{'gpu' if settings.device == 'cuda' else 'cpu'}",
        f"cluster.num_workers={settings.loader_workers}",
        "optim=qm9_short",
        f"optim.bf16={str(settings.bf16).lower()}",
        "+budget=wall_clock",
        f"seconds={training.seconds:g}",
        f"untimed_steps={settings.untimed_steps}",
        f"evaluations={settings.evaluations}",
        f"pause_after={'null' if settings.pause_after is None else settings.pause_after}",
        f"batch_size={settings.batch_size}",
        "eval_batch_size=500",
        f"max_eval_batches={'null' if settings.eval_batches is None else settings.eval_batches}",
        "checkpoint_every=1000000",
        f"job.seed={training.seed}",
        f"batching.train.seed={training.seed}",
        f"job.run_dir={Path(settings.out).resolve() / 'runs'}",
        f"job.timestamp_id={training.name}",
        f"++model.cuda_graphs={settings.cuda_graphs}",
    ]
    if training.lr is not None:
        words.append(f"optim.lr={training.lr:g}")
    if config in COMPILED:
        words.append(f"model.backbone.compile_layers={settings.compile_layers}")
    return [*words, *settings.overrides]


def run(training: Training, settings: Settings, turn: str | None = None) -> dict[str, Any]:
    """Train, or go on where an earlier call paused, and evaluate the averaged weights.

    Parameters
    ----------
    training : Training
    settings : Settings
    turn : str, optional
        Lock file; the training waits until no other process holds it.

    Returns
    -------
    dict
        ``paused``, the seconds trained so far, if the training is to go on in a later call. Else
        ``rows`` for the table, one a target, and ``curve``, both of :mod:`qm9study.tables`.
    """

    from est_ocp.training import metrics_file

    started = time.perf_counter()
    run_dir = Path(settings.out).resolve() / "runs" / training.name
    if not (run_dir / "checkpoints" / "final").is_dir():
        # What was killed begins anew.
        shutil.rmtree(run_dir, ignore_errors=True)
    config = str(ROOT / "configs" / "qm9" / f"{config_of(training.model)[0]}.yml")
    run_fairchem(config, [*overrides(training, settings), *turn_overrides(turn)])
    rows = metrics_file.read(run_dir / metrics_file.FILE_NAME)
    clock = [row for row in rows if row["kind"] == "clock"][-1]
    if clock["trained"] < training.seconds:
        return {"paused": clock["trained"]}
    return _result(training, settings, run_dir, rows, started + waited(turn))


def _result(
    training: Training,
    settings: Settings,
    run_dir: Path,
    rows: list[dict[str, Any]],
    started: float,
) -> dict[str, Any]:
    """Rows of a training that is over."""
    import torch

    from est_ocp.cli.config import instantiate, resolve
    from est_ocp.evaluation.molecules import evaluate_molecules

    memory = torch.cuda.max_memory_allocated() / 2**30 if settings.device == "cuda" else 0.0
    resolved = resolve(run_dir / "canonical_config.yaml")
    errors = evaluate_molecules(
        run_dir,
        resolved,
        run_dir / "results" / "predictions",
        splits=("val",) if training.sweep else None,
        device=settings.device,
        batch_size=500,
    )
    model = instantiate(resolved.runner.train_eval_unit.model, "the model")
    factor = 1.0 if training.target == "all" else errors[training.target].target.table_factor
    curve, seconds, timed_steps = curve_of(rows, factor)
    steps = max(row["step"] for row in rows if row["kind"] == "clock")
    same = {
        "trained_on": training.target,
        "model": training.model,
        "seed": training.seed,
        "seconds": f"{training.seconds:g}",
    }
    shared = same | {
        "lr": float(resolved.runner.train_eval_unit.optimizer_fn.lr),
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch_size": settings.batch_size,
        "steps": steps,
        "epochs": round(steps * settings.batch_size / train_size(settings.data), 3),
        "train_seconds": round(seconds, 1),
        "all_seconds": round(time.perf_counter() - started, 1),
        "molecules_per_second": round(timed_steps * settings.batch_size / seconds, 1),
        "peak_gib": round(memory, 2),
        "per_gpu": settings.per_gpu,
        "speed": settings.speed(model.capturable),
        "card": card(settings.device),
        "torch": torch.__version__,
    }
    results = [
        shared
        | {
            "target": name,
            "test_mae": found.mae.get("test"),
            "val_mae": found.mae["val"],
            "unit": found.target.table_unit,
        }
        for name, found in errors.items()
    ]
    points = [
        same | {"trained": p["seconds"], "step": p["step"], "val_mae": p["val_mae"]} for p in curve
    ]
    return {"rows": results, "curve": points}


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
