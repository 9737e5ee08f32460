"""One training of the study through fairchem's trainer, and its rows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from fairchem_run import run_fairchem
from gpu_turn import turn_overrides, waited

from s2efpeers.callbacks import KIND
from s2efpeers.data import DATA_GROUP
from s2efpeers.models import base_of, model_overrides

#: Weight of the energy in the loss; 4 on OC20, with which it would hardly be learnt in minutes.
ENERGY_COEFFICIENT = 40
METRICS = ("energy_mae", "forces_mae", "forces_cosine", "ewt", "efwt", "efwt10")


@dataclass(frozen=True)
class Training:
    """What one training is.

    ``stage`` is ``sweep``, ``main`` or ``variant``; ``fast`` are the overrides of fast paths, which
    change no result but for rounding.
    """

    stage: str
    model: str
    lr: float
    seed: int
    fast: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.stage}-{self.model}-lr{self.lr:g}-seed{self.seed}"

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What identifies it in the CSV files, as strings."""
        return (self.stage, self.model, f"{self.lr:g}", str(self.seed))


@dataclass(frozen=True)
class Settings:
    """What all trainings share."""

    out: str
    seconds: float = 150.0
    sweep_seconds: float = 40.0
    batch_size: int = 32
    eval_batch_size: int = 256
    evaluations: int = 8
    untimed_steps: int = 20
    device: str = "cpu"
    loader_workers: int = 6
    elements: Sequence[int] = ()
    overrides: Sequence[str] = field(default_factory=tuple)

    def seconds_of(self, stage: str) -> float:
        """Seconds of training in a stage."""
        return self.sweep_seconds if stage == "sweep" else self.seconds


def entry_config(training: Training, settings: Settings) -> Path:
    """Write the training's config file, as a user of est-ocp would."""
    out = Path(settings.out).resolve()
    config = {
        "hydra": {"searchpath": ["pkg://est_ocp.configs", f"file://{out}/configs"]},
        "defaults": ["train_s2ef", "_self_"],
    }
    file = out / "configs" / f"{training.name}.yml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


def overrides(training: Training, settings: Settings) -> list[str]:
    """Everything in which the training differs from ``train_s2ef``."""
    evaluations = 1 if training.stage == "sweep" else settings.evaluations
    return [
        *model_overrides(training.model),
        f"data={DATA_GROUP}",
        f"cluster=local_{'gpu' if settings.device == 'cuda' else 'cpu'}",
        f"cluster.num_workers={settings.loader_workers}",
        # The search for neighbours would let the GPU wait for the host in every step.
        "runner.loader_graphs=true",
        "+budget=wall_clock",
        f"seconds={settings.seconds_of(training.stage)}",
        f"untimed_steps={settings.untimed_steps}",
        f"evaluations={evaluations}",
        f"batch_size={settings.batch_size}",
        f"eval_batch_size={settings.eval_batch_size}",
        "max_eval_batches=null",
        f"tasks.energy.loss_fn.coefficient={ENERGY_COEFFICIENT}",
        f"optim.lr={training.lr}",
        # A fraction of the time.
        "optim.warmup_epochs=0.03",
        "optim.ema_decay=0.995",
        "optim.tf32=true",
        # The weights are not needed after the last evaluation.
        "~runner.callbacks.checkpoint",
        "~checkpoint_every",
        "+runner.callbacks.splits._target_=s2efpeers.callbacks.SplitCurve",
        "+runner.callbacks.splits.job_config=${job}",
        f"+runner.callbacks.splits.elements=[{','.join(map(str, settings.elements))}]",
        f"job.seed={training.seed}",
        f"batching.train.seed={training.seed}",
        f"job.run_dir={Path(settings.out).resolve() / 'runs'}",
        f"job.timestamp_id={training.name}",
        *training.fast,
        *settings.overrides,
    ]


def run(training: Training, settings: Settings, turn: str | None = None) -> dict[str, Any]:
    """Train anew and return the row, the curve and the machine.

    Parameters
    ----------
    training : Training
    settings : Settings
    turn : str, optional
        Lock file of :class:`gpu_turn.GpuTurn`.

    Raises
    ------
    RuntimeError
        If the training ended before its time.
    """
    import torch

    from est_ocp.cli.config import instantiate, resolve
    from est_ocp.evaluation.machine import machine_info
    from est_ocp.training import metrics_file

    started = time.perf_counter()
    run_dir = Path(settings.out).resolve() / "runs" / training.name
    shutil.rmtree(run_dir, ignore_errors=True)
    config = entry_config(training, settings)
    cuda = settings.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    run_fairchem(config, [*overrides(training, settings), *turn_overrides(turn)])
    rows = metrics_file.read(run_dir / metrics_file.FILE_NAME)
    evaluated = [row for row in rows if row["kind"] == KIND]
    clock = [row for row in rows if row["kind"] == "clock"]
    wanted = settings.seconds_of(training.stage)
    if not evaluated or evaluated[-1]["trained"] < wanted:
        raise RuntimeError(f"{training.name} ended before its {wanted:g} s were over")
    resolved = resolve(run_dir / "canonical_config.yaml")
    model = instantiate(resolved.runner.train_eval_unit.model, "the model")
    key = dict(zip(("stage", "model", "lr", "seed"), training.key, strict=True))
    steps, seconds, timed = evaluated[-1]["step"], clock[-1]["trained"], clock[-1]["timed_steps"]
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")
    shutil.rmtree(run_dir)
    return {
        "row": key
        | {
            "parameters": sum(p.numel() for p in model.parameters()),
            "batch_size": settings.batch_size,
            "steps": steps,
            "train_seconds": round(seconds, 1),
            "all_seconds": round(time.perf_counter() - started - waited(turn), 1),
            "steps_per_second": round(timed / seconds, 3),
            "peak_gib": round(peak, 2),
            "fast": " ".join(training.fast) or "none",
            "card": torch.cuda.get_device_name() if cuda else "CPU",
        },
        "curve": [
            key | {"seconds": row["trained"], "step": row["step"], "split": split} | metrics
            for row in evaluated
            for split, metrics in row["splits"].items()
        ],
        "machine": machine_info(),
    }


def fast_modes(model: str, wanted: Sequence[str]) -> list[tuple[str, ...]]:
    """Fast paths to try for a model, one after the other; the last is none.

    Parameters
    ----------
    wanted : sequence of str
        Overrides in order of importance: what fails is tried again without the last one.
    """
    from s2efpeers.models import FAST

    if base_of(model) not in FAST:
        return [()]
    return [tuple(wanted[:count]) for count in range(len(wanted), -1, -1)]
