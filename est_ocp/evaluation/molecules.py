"""Errors of a checkpoint on QM9's validation and test sets, in the units of published tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from est_ocp.errors import CheckpointError, ConfigError
from est_ocp.evaluation.checkpoint import (
    find_inference_checkpoint,
    load_unit,
    quiet,
    read_checkpoint,
)
from est_ocp.qm9_targets import ALL, Target, targets_of

#: Beside the npz files: the errors, and the checkpoint that they come from.
METRICS_FILE = "metrics.json"
#: The task's name.
TASK = "target"


@dataclass
class MolecularErrors:
    """Errors of one target by split, in its table unit.

    Attributes
    ----------
    target : Target
    mae, rmse : dict of str to float
    sizes : dict of str to int
        Molecules.
    """

    target: Target
    mae: dict[str, float]
    rmse: dict[str, float]
    sizes: dict[str, int]

    def text(self) -> str:
        """Return a table."""
        unit = self.target.table_unit
        lines = [
            f"{self.target.name}, {unit}",
            f"{'split':<8}{'molecules':>10}{'MAE':>12}{'RMSE':>12}",
        ]
        for split, mae in self.mae.items():
            lines.append(f"{split:<8}{self.sizes[split]:>10}{mae:>12.4f}{self.rmse[split]:>12.4f}")
        return "\n".join(lines)


def target_of_checkpoint(checkpoint: str | Path) -> str | None:
    """Return the QM9 target that a checkpoint predicts, or None if it serves another task.

    "all" if it predicts all of them.
    """
    content = read_checkpoint(checkpoint)
    names = [task["name"] for task in content.tasks_config]
    if names != [TASK]:
        return None
    try:
        target = content.model_config["heads"][TASK]["target"]
        targets_of(target)
        return target
    except (KeyError, TypeError):
        raise CheckpointError(
            f"{checkpoint} has a task '{TASK}' but no head of est_ocp.models."
            "MolecularPropertyHead; its units are not known"
        ) from None


def split_configs(config: Any, splits: Sequence[str] | None) -> dict[str, Any]:
    """Return the dataset configuration of some splits of a resolved training config.

    Parameters
    ----------
    config : DictConfig
        Its validation data tell target, cutoff and folder; other splits lie beside them.
    splits : sequence of str, optional
        Default: val and test.

    Raises
    ------
    ConfigError
        If the config's validation data are not QM9's.
    """
    from omegaconf import OmegaConf

    try:
        loader = OmegaConf.to_container(config.runner.eval_dataloader, resolve=True)
        (entry,) = loader["dataset"]["dataset_configs"].values()
        (source,) = [split["src"] for split in entry["splits"].values()]
        if entry["format"] != "qm9_lmdb":
            raise KeyError("format")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            "the config's validation data are not one split of QM9; name the config of a training "
            "on QM9 (configs/qm9/)"
        ) from error
    folder = Path(source).parent
    found = {name: {"src": str(folder / name)} for name in splits or ("val", "test")}
    return {"qm9": {**entry, "no_shuffle": True, "splits": found}}


def evaluate_molecules(
    checkpoint: str | Path,
    config: Any,
    out: str | Path,
    splits: Sequence[str] | None = None,
    device: str | None = None,
    batch_size: int = 256,
) -> dict[str, MolecularErrors]:
    """Predict splits of QM9 with a checkpoint's averaged weights; save predictions and errors.

    Parameters
    ----------
    checkpoint : path
        As for :func:`est_ocp.evaluation.find_inference_checkpoint`.
    config : DictConfig
        Resolved config of a training on QM9.
    out : path
        Gets ``<split>.npz`` (``index``, QM9's numbers; ``prediction`` and ``label`` in the targets'
        units, float64, references added; [M], or [M, 12] with all targets) and ``metrics.json``.
    splits : sequence of str, optional
        Default: val and test.
    device : {"cpu", "cuda"}, optional
        Default: a GPU if there is one.
    batch_size : int
        Molecules predicted at once.

    Returns
    -------
    dict
        Target's name to its errors.

    Raises
    ------
    ESTError
        If checkpoint, config or data cannot be used or do not fit each other.
    """
    from est_ocp.data import create_qm9_dataset

    file = find_inference_checkpoint(checkpoint)
    target = target_of_checkpoint(file)
    configs = split_configs(config, splits)
    if target is None or configs["qm9"].get("target") != target:
        predicts = "none of QM9's targets" if target is None else target
        raise ConfigError(
            f"{file} predicts {predicts}, the config's target is "
            f"{configs['qm9'].get('target')}; set data.target (all: tasks=qm9_all), or take the "
            "run's own config"
        )
    dataset = create_qm9_dataset(configs)
    unit = load_unit(file, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    errors = {t.name: MolecularErrors(t, {}, {}, {}) for t in targets_of(target)}
    names, stops = list(configs["qm9"]["splits"]), dataset.cumulative_sizes
    for name, subset, stop in zip(names, dataset.datasets, stops, strict=True):
        start, split = stop - len(subset), subset.dataset
        prediction, label = [], []
        for first in tqdm(
            range(start, stop, batch_size), desc=name, disable=not sys.stderr.isatty()
        ):
            batch = dataset.__getitems__(range(first, min(first + batch_size, stop)))
            label.append(batch.target.double())
            with quiet():
                predicted = unit.predict(batch)[TASK]
            prediction.append(predicted.reshape(label[-1].shape).double().cpu())
        predictions = split.in_units(torch.cat(prediction).numpy())
        labels = split.in_units(torch.cat(label).numpy())
        columns = (predictions - labels).reshape(stop - start, -1).T
        for found, difference in zip(errors.values(), columns, strict=True):
            difference = difference * found.target.table_factor
            found.mae[name] = float(np.abs(difference).mean())
            found.rmse[name] = float(np.sqrt(np.square(difference).mean()))
            found.sizes[name] = stop - start
        np.savez(
            out / f"{name}.npz",
            index=split.molecules.index,
            targets=list(errors),
            prediction=predictions + split.references,
            label=labels + split.references,
        )
    (out / METRICS_FILE).write_text(json.dumps(_summary(file, target, errors), indent=2) + "\n")
    return errors


def _summary(file: Path, target: str, errors: dict[str, MolecularErrors]) -> dict[str, Any]:
    """What ``metrics.json`` holds."""
    found = {
        name: {"unit": e.target.table_unit, "mae": e.mae, "rmse": e.rmse, "molecules": e.sizes}
        for name, e in errors.items()
    }
    content = {"checkpoint": str(file), "target": target}
    return content | ({"targets": found} if target == ALL else found[target])
