"""Errors against seconds of training."""

from __future__ import annotations

from pathlib import Path

from s2efpeers.models import LABELS, PAIR, label_of
from s2efpeers.report import KNOWN, UNITS, Rows, final, judged

#: Metric and split of each panel; none is the mean that models are compared by.
PANELS = (("forces_mae", ""), ("energy_mae", ""), ("efwt10", ""), ("energy_mae", "val_id"))


def draw(curves: Rows, path: Path) -> None:
    """Plot one panel a metric and split, one line a training.

    Raises
    ------
    ConfigError
        Without matplotlib.
    """
    from est_ocp.evaluation.figures import pyplot

    plt = pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), sharex=True)
    mean = judged(final(curves, "main"))
    for axis, (metric, split) in zip(axes.flat, PANELS, strict=True):
        wanted = split or mean
        rows = [row for row in curves if row["stage"] == "main" and row["split"] == wanted]
        name, factor = UNITS[metric]
        for number, model in enumerate(LABELS):
            for seed in sorted({row["seed"] for row in rows if row["model"] == model}):
                points = [row for row in rows if (row["model"], row["seed"]) == (model, seed)]
                axis.plot(
                    [float(row["seconds"]) for row in points],
                    [factor * float(row[metric]) for row in points],
                    marker="." if model in PAIR else "x",
                    markersize=5,
                    color=f"C{number}",
                    linestyle="-" if model in PAIR else "--",
                    linewidth=1.6 if model in PAIR else 1.1,
                    label=label_of(model) if seed == "0" else None,
                )
        if metric.endswith("mae"):
            axis.set_yscale("log")
            for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
                ticks("{x:g}")
        axis.set_ylabel(f"{split}: {name}" if split else name)
        axis.grid(alpha=0.3, which="both")
    for axis in axes[1]:
        axis.set_xlabel("seconds of training")
    axes.flat[0].legend(fontsize=8)
    frames = ", frames of known elements" if mean == KNOWN else ""
    figure.suptitle(
        f"Mean of the four validation splits{frames} where no split is named; a line a seed",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
