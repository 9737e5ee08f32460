"""The report's figures, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from est_ocp.errors import ConfigError
from est_ocp.evaluation.equivariance import EquivarianceErrors
from est_ocp.evaluation.predictions import SplitPredictions

_BLUE, _ORANGE, _GREY = "#2563a8", "#d9822b", "#8a8f98"
#: Points drawn in a parity plot; more only make the file heavy.
_MAX_POINTS = 20_000


def pyplot() -> Any:
    """Return matplotlib's pyplot with this report's look, for drawing into files.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ConfigError(
            "the report's figures need matplotlib: pip install 'est-ocp[report]'"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "figure.dpi": 130,
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
        }
    )
    return plt


def learning_curve(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw training losses, and the evaluations' force or else energy errors, over steps."""
    plt = pyplot()
    train = [r for r in rows if r["kind"] == "train"]
    evals = [r for r in rows if r["kind"] == "eval"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.0), layout="constrained")
    steps = [r["step"] for r in train]
    names = [k for k in (train[0] if train else {}) if k.startswith("loss_")]
    left.plot(steps, _column(train, "loss"), color=_BLUE, label="total")
    for name, color in zip(names, (_ORANGE, "#4c9f70", _GREY), strict=False):
        label = name.removeprefix("loss_").replace("_", " ")
        left.plot(steps, _column(train, name), color=color, lw=1, label=label)
    if train:
        left.set_yscale("log")
        left.legend()
    left.set(xlabel="step", ylabel="training loss (weighted)")
    splits = [s for s in (evals[-1]["splits"] if evals else {}) if s != "mean"]
    has_forces = any("forces_mae" in evals[-1]["splits"][split] for split in splits)
    metric = "forces_mae" if has_forces else "energy_mae"
    for split in splits:
        curve = [r["splits"].get(split, {}).get(metric) for r in evals]
        right.plot(
            [r["step"] for r in evals],
            [np.nan if v is None else v for v in curve],
            marker="o",
            ms=3,
            label=split,
        )
    if splits:
        right.legend()
    label = "force MAE (eV/Å)" if has_forces else "energy MAE (eV)"
    right.set(xlabel="step", ylabel=label, ylim=(0, None))
    _save(plt, figure, path)


def parity(splits: Mapping[str, SplitPredictions], path: Path) -> None:
    """Draw predicted against labelled energies, and force components of free atoms if any."""
    plt = pyplot()
    rng = np.random.default_rng(0)
    rows = 1 + any(p.forces is not None for p in splits.values())
    figure, axes = plt.subplots(
        rows,
        len(splits),
        figsize=(2.5 * len(splits) + 0.3, 2.7 * rows + 0.4),
        layout="constrained",
        squeeze=False,
    )
    for column, (name, predictions) in enumerate(splits.items()):
        for row, (label, prediction, what) in enumerate(_parity_pairs(predictions)):
            ax = axes[row, column]
            if len(label) > _MAX_POINTS:
                chosen = rng.choice(len(label), _MAX_POINTS, replace=False)
                label, prediction = label[chosen], prediction[chosen]
            low, high = np.percentile(np.concatenate([label, prediction]), [0.5, 99.5])
            margin = 0.05 * (high - low) + 1e-6
            limits = (low - margin, high + margin)
            ax.plot(limits, limits, color=_GREY, lw=0.8)
            ax.scatter(label, prediction, s=4, alpha=0.35, lw=0, color=(_BLUE, _ORANGE)[row])
            ax.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"label: {what}")
            if column == 0:
                ax.set_ylabel("prediction")
            if row == 0:
                ax.set_title(name)
    _save(plt, figure, path)


def _parity_pairs(predictions: SplitPredictions) -> list[tuple[np.ndarray, np.ndarray, str]]:
    what = "energy (eV)" if predictions.task == "s2ef" else "relaxed energy (eV)"
    pairs = [(predictions.energy_label, predictions.energy, what)]
    if predictions.forces is not None:
        free = predictions.free_atoms_only()
        pairs.append((free.forces_label.ravel(), free.forces.ravel(), "force component (eV/Å)"))
    return pairs


def equivariance(errors: list[EquivarianceErrors], path: Path) -> None:
    """Draw histograms of the relative errors under rotations: the first filled, others as lines."""
    plt = pyplot()
    kinds = list(errors[0].by_kind())
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(4.2 * len(kinds), 2.8), layout="constrained", squeeze=False
    )
    axes = axes[0]
    for ax, kind in zip(axes, kinds, strict=True):
        values = [np.maximum(e.by_kind()[kind].ravel(), 1e-17) for e in errors]
        logs = np.log10(np.concatenate(values))
        bins = np.logspace(np.floor(logs.min()), np.ceil(logs.max() + 1e-9), 41)
        styles = ({"color": _BLUE, "alpha": 0.65}, {"color": _ORANGE, "histtype": "step", "lw": 2})
        for value, error, style in zip(values, errors, styles, strict=False):
            ax.hist(value, bins=bins, label=error.dtype, **style)
            ax.axvline(np.median(value), color=style["color"], lw=1, ls="--")
        ax.set_xscale("log")
        ax.set(xlabel=f"relative {kind} error under rotation", ylabel="structures × rotations")  # noqa: RUF001
    axes[0].legend(title="median dashed")
    _save(plt, figure, path)


def _column(rows: list[dict[str, Any]], key: str) -> list[float]:
    return [np.nan if r.get(key) is None else r[key] for r in rows]


def _save(plt: Any, figure: Any, path: Path) -> None:
    figure.savefig(path)
    plt.close(figure)
