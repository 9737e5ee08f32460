"""Callbacks of the study's trainings: all metrics of each split at every evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torchtnt.framework.callback import Callback

from est_ocp.errors import ConfigError
from est_ocp.evaluation import SplitPredictions
from est_ocp.evaluation.metrics import (
    ENERGY_THRESHOLD,
    FORCE_THRESHOLD,
    mean_row,
    s2ef_metrics,
)
from est_ocp.training import metrics_file
from est_ocp.training.wall_clock import clock_of

#: Kind of the rows in ``metrics.jsonl``.
KIND = "splits"
#: Name of the mean over the splits' frames that hold only elements of the training set.
KNOWN = "known"
#: Factor on both thresholds of ``efwt10``, for short trainings that reach none of the others.
LOOSE = 10


class SplitCurve(Callback):
    """Adds all S2EF metrics of every split, and their mean, to ``metrics.jsonl``.

    The predictions are those of the evaluation itself (the averaged weights), so that nothing is
    predicted twice. Besides :func:`est_ocp.evaluation.metrics.s2ef_metrics` there is ``efwt10``,
    EFwT with both thresholds ten times as large.

    What a network says of an element that it was never trained on depends on a random vector, its
    embedding: the mean :data:`KNOWN` leaves frames with such elements out.

    Parameters
    ----------
    job_config : DictConfig
        The job, for the place of the run.
    elements : sequence of int, optional
        Atomic numbers in the training set, for that mean.
    """

    def __init__(self, job_config: Any, elements: Sequence[int] | None = None) -> None:
        self.path = metrics_file.metrics_path(job_config)
        self.elements = None if elements is None else np.array([int(z) for z in elements])
        self.parts: dict[str, list[dict[str, np.ndarray]]] = {}
        self.hook: Any = None

    def on_eval_start(self, state: Any, unit: Any) -> None:
        """Begin to listen to the evaluated model."""
        self.parts = defaultdict(list)
        evaluated = unit.eval_unit
        tasks = {task.name: task for task in evaluated.tasks}

        def keep(_model: nn.Module, inputs: tuple[Any, ...], out: dict[str, Any]) -> None:
            self._keep(inputs[0], out, tasks)

        self.hook = evaluated.model.register_forward_hook(keep)

    def on_eval_end(self, state: Any, unit: Any) -> None:
        """Write the row."""
        self.hook.remove()
        clock = clock_of(unit)
        splits = {
            split: split_metrics(_joined(parts)) for split, parts in sorted(self.parts.items())
        }
        known = [
            split_metrics(frames)
            for split in sorted(self.parts)
            if (frames := self._known(split)) is not None
        ]
        self.parts = {}
        row = {"kind": KIND, "step": unit.train_progress.num_steps_completed}
        row["trained"] = None if clock is None else round(clock.trained, 3)
        means = {"mean": mean_row([*splits.values()])} | ({KNOWN: mean_row(known)} if known else {})
        metrics_file.append(self.path, row | {"splits": splits | means})

    def _keep(self, data: Any, out: dict[str, Any], tasks: dict[str, Any]) -> None:
        """Sort one batch's predictions by split."""
        values = {
            name: tasks[name].normalizer.denorm(out[name][name].detach()).cpu().numpy()
            for name in ("energy", "forces")
        }
        natoms = data.natoms.cpu().numpy()
        numbers = data.atomic_numbers.cpu().numpy()
        owner = np.repeat(np.arange(len(natoms)), natoms)
        labels = data.forces.cpu().numpy(), data.energy.reshape(-1).cpu().numpy()
        names = np.array([name.split(".", 1)[-1] for name in data.dataset_name])
        for split in np.unique(names):
            frames = names == split
            atoms = frames[owner]
            self.parts[str(split)].append(
                {
                    "ids": np.array([str(i) for i in np.flatnonzero(frames)]),
                    "energy": values["energy"].reshape(-1)[frames],
                    "forces": values["forces"][atoms],
                    "natoms": natoms[frames],
                    "fixed": data.fixed.cpu().numpy().astype(bool)[atoms],
                    "energy_label": labels[1][frames],
                    "forces_label": labels[0][atoms],
                    "numbers": numbers[atoms],
                }
            )

    def _known(self, split: str) -> SplitPredictions | None:
        """Frames of a split whose elements all occur in training; None if there are none."""
        if self.elements is None:
            return None
        joined = _joined(self.parts[split])
        strange = ~np.isin(np.concatenate([p["numbers"] for p in self.parts[split]]), self.elements)
        owner = np.repeat(np.arange(len(joined)), joined.natoms)
        kept = np.bincount(owner, strange, len(joined)) == 0
        return _chosen(joined, kept, kept[owner]) if kept.any() else None


def _joined(parts: list[dict[str, np.ndarray]]) -> SplitPredictions:
    names = [name for name in parts[0] if name != "numbers"]
    return SplitPredictions(**{n: np.concatenate([part[n] for part in parts]) for n in names})


def _chosen(found: SplitPredictions, frames: np.ndarray, atoms: np.ndarray) -> SplitPredictions:
    """Some frames [S] of the predictions, and their atoms [N]; masks."""
    by_atom = {name: getattr(found, name)[atoms] for name in ("forces", "fixed", "forces_label")}
    by_frame = ("ids", "energy", "natoms", "energy_label")
    return SplitPredictions(**by_atom, **{name: getattr(found, name)[frames] for name in by_frame})


def split_metrics(predictions: SplitPredictions) -> dict[str, float]:
    """Metrics of one split, with ``efwt10``."""
    energy = np.abs(predictions.energy - predictions.energy_label)
    free = predictions.free_atoms_only()
    error = np.abs(free.forces - free.forces_label).max(axis=1, initial=0.0)
    worst = np.zeros(len(predictions))
    np.maximum.at(worst, np.repeat(np.arange(len(predictions)), free.natoms), error)
    loose = (energy < LOOSE * ENERGY_THRESHOLD) & (worst < LOOSE * FORCE_THRESHOLD)
    return s2ef_metrics(predictions) | {"efwt10": float(loose.mean())}


class ScaleUpdates(Callback):
    """Multiplies the last weights of every layer's EST update by a factor before training.

    Parameters
    ----------
    factor : float
        Below 1 the layers begin nearer to passing their input on.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def on_train_start(self, state: Any, unit: Any) -> None:
        """Scale; the averaged weights begin as a copy of these at the first step."""
        found = 0
        with torch.no_grad():
            for name, parameter in unit.model.named_parameters():
                if ".update." in name and name.endswith(("weight_out", "bias_out")):
                    parameter.mul_(self.factor)
                    found += 1
        if not found:
            raise ConfigError("ScaleUpdates found no experts in the model's updates")
