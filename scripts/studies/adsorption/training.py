"""One training of the study through fairchem's trainer, and its predictions."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fairchem_run import run_fairchem

#: The root of the mean number of atoms, as Equiformer takes; the same head for all.
_HEAD = "model.heads.energy.avg_num_nodes=4.2"
#: Reductions of the message blocks, the same for both Equiformers.
_SHARED = [
    "model.backbone.irreps=64x0e+32x1e",
    "model.backbone.num_layers=2",
    "model.backbone.feature_channels=64",
    "model.backbone.graph.cutoff=4.0",
    "model.backbone.num_distance_basis=64",
    "model.backbone.message.num_heads=4",
    "model.backbone.message.hidden=64x0e+32x1e",
    "model.backbone.alpha_drop=0.0",
    _HEAD,
]
#: Each model's config and the reductions that make it fit so small a data set.
MODELS: dict[str, list[str]] = {
    "equiformer": [
        "model=equiformer_is2re",
        *_SHARED,
        "model.backbone.update.hidden=192x0e+96x1e",
    ],
    "est": [
        "model=est_is2re_6layer",
        *_SHARED,
        "model.backbone.update.hidden_channels=32",
        "model.backbone.update.spherical_expert_channels=64",
        "model.backbone.update.steerable_expert_channels=32",
    ],
    "schnet": [
        "model=schnet_is2re",
        "model.backbone.channels=128",
        "model.backbone.num_layers=3",
        "model.backbone.graph.cutoff=4.0",
        "model.backbone.num_distance_basis=64",
        _HEAD,
    ],
}
LABELS = {
    "equiformer": "Equiformer, own feed-forward",
    "est": "Equiformer, EST update",
    "schnet": "SchNet",
    "additive": "metal + adsorbate + site + coverage",
    "mean": "mean of the training energies",
}
#: Those that nothing is trained for.
TRIVIAL = ("additive", "mean")


@dataclass(frozen=True)
class Training:
    """What one training is: the model, the group left out, and the seed."""

    model: str
    by: str
    held_out: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folders."""
        return f"{self.by}-{self.held_out}-{self.model}-seed{self.seed}"


@dataclass(frozen=True)
class Settings:
    """What all trainings share."""

    out: str
    epochs: int = 30
    batch_size: int = 32
    lr: float = 1e-3
    device: str = "cpu"
    loader_workers: int = 0
    keep_checkpoints: bool = False
    overrides: Sequence[str] = field(default_factory=tuple)


def fold_folder(out: str | Path, by: str, held_out: str) -> Path:
    """Folder with ``train`` and ``held_out`` of one fold."""
    return Path(out) / "data" / f"{by}-{held_out}"


def write_data_config(out: str | Path, by: str, held_out: str, labels: Sequence[float]) -> None:
    """Write the fold's Hydra data group, normalised by its own training energies.

    Parameters
    ----------
    labels : sequence of float
        Training energies, eV.
    """
    folder = fold_folder(out, by, held_out)
    natoms = np.load(folder / "train" / "metadata.npz")["natoms"]
    common = {"format": "est_ocp.data.OC20LmdbDataset", "task": "is2re"}
    config = {
        "train": common | {"splits": {"train": {"src": str(folder / "train")}}},
        "val": common | {"splits": {"held_out": {"src": str(folder / "held_out")}}},
        "normalizer": {
            "energy_mean": float(np.mean(labels)),
            "energy_std": float(np.std(labels)),
        },
        "avg_num_nodes": float(natoms.mean()),
    }
    group = Path(out) / "configs" / "data"
    group.mkdir(parents=True, exist_ok=True)
    (group / f"{by}-{held_out}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def entry_config(training: Training, settings: Settings) -> Path:
    """Write the training's config file, as a user of est-ocp would."""
    out = Path(settings.out).resolve()
    config = {
        "hydra": {"searchpath": ["pkg://est_ocp.configs", f"file://{out}/configs"]},
        "defaults": ["train_is2re", "_self_"],
    }
    file = out / "configs" / f"{training.name}.yml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


def overrides(training: Training, settings: Settings) -> list[str]:
    """Everything on which the trainings differ from ``train_is2re``."""
    cluster = "local_gpu" if settings.device == "cuda" else "local_cpu"
    return [
        *MODELS[training.model],
        f"data={training.by}-{training.held_out}",
        f"cluster={cluster}",
        f"cluster.num_workers={settings.loader_workers}",
        f"epochs={settings.epochs}",
        f"batch_size={settings.batch_size}",
        "eval_batch_size=128",
        f"optim.lr={settings.lr}",
        "optim.warmup_epochs=2",
        "optim.ema_decay=0.99",
        "evaluate_every=null",
        # Fairchem evaluates after every epoch; one batch keeps that short.
        "max_eval_batches=1",
        "checkpoint_every=1000000",
        "log_every=100",
        f"job.seed={training.seed}",
        f"batching.train.seed={training.seed}",
        f"job.run_dir={Path(settings.out).resolve() / 'runs'}",
        f"job.timestamp_id={training.name}",
        *settings.overrides,
    ]


def run(training: Training, settings: Settings) -> dict[str, Any]:
    """Train, predict the group left out with the averaged weights, and tidy up.

    Returns
    -------
    dict
        ``ids`` (numbers in the data file), ``predictions`` (eV), ``steps``, ``seconds``,
        ``parameters``.
    """
    import hydra
    from fairchem.core.common import distutils
    from omegaconf import OmegaConf

    from est_ocp.cli.evaluate import evaluate
    from est_ocp.evaluation import SplitPredictions
    from est_ocp.evaluation.checkpoint import read_checkpoint
    from est_ocp.training import metrics_file

    run_dir = Path(settings.out).resolve() / "runs" / training.name
    shutil.rmtree(run_dir, ignore_errors=True)
    config = entry_config(training, settings)
    started = time.perf_counter()
    run_fairchem(config, overrides(training, settings))
    seconds = time.perf_counter() - started
    evaluate(run_dir)
    distutils.cleanup()
    predicted = SplitPredictions.load(run_dir / "results" / "predictions" / "held_out.npz")
    model = hydra.utils.instantiate(OmegaConf.create(read_checkpoint(run_dir).model_config))
    steps = metrics_file.read(run_dir / "metrics.jsonl")[-1]["step"]
    if not settings.keep_checkpoints:
        shutil.rmtree(run_dir / "checkpoints")
    return {
        "ids": [int(i) for i in predicted.ids],
        "predictions": [float(e) for e in predicted.energy],
        "steps": int(steps),
        "seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
