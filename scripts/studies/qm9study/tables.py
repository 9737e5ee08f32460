"""The study's CSV files, and what can be read off them."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from csv_rows import append, read

from est_ocp.qm9_targets import TARGETS
from qm9study.training import Training

#: One row a target of each training.
TRAININGS = (
    "target", "trained_on", "model", "seed", "seconds", "lr", "test_mae", "val_mae", "unit",
    "parameters", "batch_size", "steps", "epochs", "train_seconds", "all_seconds",
    "molecules_per_second", "peak_gib", "per_gpu", "speed", "card", "torch",
)  # fmt: skip
CURVE = ("trained_on", "model", "seed", "seconds", "trained", "step", "val_mae")
SWEEP = ("model", "trained_on", "lr", "seconds", "val_mae", "epochs", "card")

Row = dict[str, str]


class Tables:
    """Files of one folder: ``trainings.csv``, ``curves.csv``, ``lr_sweep.csv``.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def trainings(self) -> list[Row]:
        """Rows of finished trainings."""
        return read(self.folder / "trainings.csv")

    @property
    def curves(self) -> list[Row]:
        """Validation errors against seconds of training."""
        return read(self.folder / "curves.csv")

    @property
    def sweep(self) -> list[Row]:
        """Validation errors by learning rate."""
        return read(self.folder / "lr_sweep.csv")

    def add(self, training: Training, result: dict[str, Any]) -> None:
        """Keep a training's result."""
        if not training.sweep:
            append(self.folder / "curves.csv", CURVE, result["curve"])
            append(self.folder / "trainings.csv", TRAININGS, result["rows"])
            return
        row = {name: result["rows"][0][name] for name in SWEEP}
        # Of one target what the table has; of all together the mean in units of their spreads.
        row["val_mae"] = result["curve"][-1]["val_mae"]
        append(self.folder / "lr_sweep.csv", SWEEP, [row])

    def done(self) -> set[tuple[str, str, int, float, str]]:
        """Keys (:attr:`Training.key`) of what need not be trained again."""
        trained = {
            (r["trained_on"], r["model"], int(r["seed"]), float(r["seconds"]), "")
            for r in self.trainings
        }
        swept = {
            (r["trained_on"], r["model"], 0, float(r["seconds"]), f"{float(r['lr']):g}")
            for r in self.sweep
        }
        return trained | swept

    def best_rate(self, model: str) -> float | None:
        """Learning rate of the smallest validation error, None if the model has no sweep."""
        rows = [r for r in self.sweep if r["model"] == model]
        rows = [r for r in rows if math.isfinite(float(r["val_mae"]))]
        return float(min(rows, key=lambda r: float(r["val_mae"]))["lr"]) if rows else None


def targets_of(rows: list[Row]) -> list[str]:
    """Targets with a finished training, in QM9's order."""
    present = {row["target"] for row in rows}
    return [target for target in TARGETS if target in present]


def values(rows: list[Row], target: str, model: str, column: str) -> list[float]:
    """Values of a column over the seeds of one model and target."""
    return [float(r[column]) for r in rows if (r["target"], r["model"]) == (target, model)]


def mean(rows: list[Row], target: str, model: str, column: str) -> float | None:
    """Mean of a column over the seeds of one model and target."""
    found = values(rows, target, model, column)
    return statistics.fmean(found) if found else None


def error_text(found: list[float]) -> str:
    """A mean, with its standard deviation where there are several."""
    text = f"{statistics.fmean(found):.4g}"
    return text + (f" ± {statistics.stdev(found):.2g}" if len(found) > 1 else "")


def relative_noise(rows: list[Row]) -> float | None:
    """Standard deviation of a test error over seeds, relative to it, pooled over all repeats.

    None if nothing was repeated.
    """
    squares, freedoms = 0.0, 0
    for target in targets_of(rows):
        for model in {row["model"] for row in rows}:
            found = values(rows, target, model, "test_mae")
            if len(found) > 1:
                squares += (
                    (len(found) - 1) * statistics.variance(found) / statistics.fmean(found) ** 2
                )
                freedoms += len(found) - 1
    return math.sqrt(squares / freedoms) if freedoms else None
