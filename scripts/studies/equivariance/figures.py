"""Figures of the study of equivariance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equivariance.fits import PowerLaw

#: Colour and marker by the name of a kind.
STYLES = {
    "fibonacci_poles": ("Fibonacci with poles", "#8c564b", "v"),
    "fibonacci": ("Fibonacci, half offset", "#ff7f0e", "o"),
    "repulsion": ("+ repulsion", "#e3b505", "s"),
    "design": ("spherical design", "#2ca02c", "D"),
    "lebedev": ("Lebedev", "#1f77b4", "^"),
    "product, weights": ("e3nn grid, weights in the softmax", "#9467bd", "P"),
    "product, plain softmax": ("e3nn grid, plain softmax", "#d62728", "X"),
}
#: Of the axis of cap discrepancies, which is too short for powers of ten.
CAP_TICKS = (0.005, 0.01, 0.02, 0.05)


def plot_against_size(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """One panel a degree L: error of the features against S."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    degrees = sorted({row["L"] for row in rows})
    columns = 2 if len(degrees) > 1 else 1
    lines = -(-len(degrees) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(10, 4 * lines), squeeze=False)
    for axis, degree in zip(axes.flat, degrees, strict=False):
        for name, (label, colour, marker) in STYLES.items():
            points = sorted(
                (row["S"], row["features"])
                for row in rows
                if row["L"] == degree and row["points"] == name
            )
            if points:
                axis.loglog(*zip(*points, strict=True), color=colour, marker=marker, label=label)
        axis.set_title(f"L = {degree}")
        axis.set_xlabel("points S")
        axis.set_ylabel("relative error of the features")
        ticks = sorted({row["S"] for row in rows if row["L"] == degree and _plain(row)})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(degrees) :]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _plain(row: Mapping[str, Any]) -> bool:
    return not row["points"].startswith("product")


def plot_bounds(
    rows: Sequence[Mapping[str, Any]],
    laws: Mapping[int, Mapping[str, PowerLaw]],
    ratios: Mapping[int, float],
    file: Path,
) -> None:
    """Error against cap discrepancy, degree and smooth discrepancy, one line of panels an L.

    Rows have ``smooth``, the discrepancy of the kernel that fits their L best.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(laws), 3, figsize=(12, 3.6 * len(laws)), squeeze=False)
    for line, degree in zip(axes, laws, strict=True):
        chosen = [row for row in rows if row["L"] == degree]
        for axis, measure in zip(line, ("cap_discrepancy", "degree", "smooth"), strict=True):
            for name, (label, colour, marker) in STYLES.items():
                points = [
                    (row[measure], row["features"]) for row in chosen if row["points"] == name
                ]
                if points:
                    axis.plot(
                        *zip(*points, strict=True), color=colour, marker=marker, ls="", label=label
                    )
            axis.set_yscale("log")
            axis.grid(alpha=0.3)
            if measure in laws[degree]:
                _draw_law(axis, laws[degree][measure], [row[measure] for row in chosen])
        line[0].set_xlabel("cap discrepancy")
        line[0].set_xticks(CAP_TICKS, [str(tick) for tick in CAP_TICKS])
        line[0].tick_params(axis="x", which="minor", labelbottom=False)
        line[1].set_xlabel("degree of exactness")
        line[2].set_xlabel(f"smooth discrepancy, r = {ratios[degree]:.2f}")
        line[0].set_ylabel(f"L = {degree}: relative error")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.16 / len(laws), 1, 1))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _draw_law(axis: Any, law: PowerLaw, measure: Sequence[float]) -> None:
    """Fit and upper bound, on logarithmic axes."""
    axis.set_xscale("log")
    x = np.geomspace(min(measure), max(measure), 2)
    axis.plot(x, law.factor * x**law.exponent, color="0.4", lw=1)
    axis.plot(x, law.bound * x**law.exponent, color="0.4", lw=1, ls="--")
