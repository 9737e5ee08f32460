"""The study's figure: differences against equivariance errors, and accuracies."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from folds.plan import FOLDS, SWEEP
from folds.report import Row, select, values

COLOURS = {2: "tab:blue", 3: "tab:orange", 5: "tab:green", 10: "tab:red", 100: "tab:purple"}
MARKERS = {"1": "o", "2": "s"}
#: Smallest value shown: differences below are rounding.
FLOOR = 1e-16


def plot(rows: list[Row], path: Path) -> None:
    """Draw what the rows have."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11.0, 4.6))
    _differences(left, rows)
    _accuracies(right, rows)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _differences(axis, rows: list[Row]) -> None:
    """One mark a rule, degree and fold: geometric means over seeds of the layers as drawn."""
    ends = np.array([FLOOR, 3.0])
    axis.fill_between(ends, 3 * ends, 1e2, color="0.93", linewidth=0)
    axis.plot(ends, 3 * ends, color="0.4", linewidth=1)
    axis.text(2e-11, 1e-3, "difference > 3 x error: excluded", fontsize=8, color="0.3")
    for fold in FOLDS:
        for lmax, marker in MARKERS.items():
            some = select(rows, part="drawn", fold=fold, lmax=lmax)
            for kind, points in sorted({(row["kind"], row["points"]) for row in some}):
                cell = select(some, kind=kind, points=points)
                x, y = (
                    np.exp(np.log(np.maximum(values(cell, name), FLOOR)).mean())
                    for name in ("error_start", "difference_start")
                )
                axis.plot(x, y, marker, color=COLOURS[fold], markersize=6, alpha=0.75)
    for fold in FOLDS[:4]:
        axis.plot([], [], "o", color=COLOURS[fold], label=f"{fold}-fold")
    for lmax, marker in MARKERS.items():
        axis.plot([], [], marker, color="0.5", label=f"L = {lmax}")
    axis.set(xscale="log", yscale="log", xlim=(1e-16, 3), ylim=(FLOOR / 2, 30))
    axis.set_xlabel("equivariance error of the layer, relative")
    axis.set_ylabel("difference of the two structures' features, relative")
    axis.set_title("EST layers as drawn, fold > L", fontsize=10)
    axis.legend(fontsize=8, loc="upper left")


def _accuracies(axis, rows: list[Row]) -> None:
    """Accuracy of trained layers of degree 1 for the rules of the sweep."""
    names = [f"{kind}\n{points}" for kind, points in SWEEP]
    place = np.arange(len(SWEEP))
    shown = (("accuracy", "as given", "-"), ("accuracy_back", "turned at random", ":"))
    for fold in (2, 3):
        for name, label, line in shown:
            cells = [
                values(select(rows, part="sweep", fold=fold, kind=kind, points=points), name)
                for kind, points in SWEEP
            ]
            means = [cell.mean() if len(cell) else np.nan for cell in cells]
            spread = [cell.std() if len(cell) else np.nan for cell in cells]
            # Side by side, so that error bars at one height can be told apart.
            shift = 0.08 * (fold - 2.5) * (1 if name == "accuracy" else 3)
            axis.errorbar(
                place + shift, means, spread, fmt=f"o{line}", color=COLOURS[fold], capsize=3,
                markersize=5, markerfacecolor=None if name == "accuracy" else "white",
                label=f"{fold}-fold, {label}",
            )  # fmt: skip
    axis.axhline(50, color="0.4", linewidth=0.8)
    axis.text(-0.4, 46.5, "chance", fontsize=8, color="0.3", va="top")
    axis.set_xticks(place, names, fontsize=8)
    axis.set(ylim=(0, 105), ylabel="accuracy, %")
    axis.set_title("EST of degree 1 after training, by points of the sphere", fontsize=10)
    axis.legend(fontsize=8, loc="lower left")
