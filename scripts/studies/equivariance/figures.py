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


def plot_against_size(
    rows: Sequence[Mapping[str, Any]], last: Sequence[Mapping[str, Any]], file: Path
) -> None:
    """Errors against S, a column of panels for each L.

    Parameters
    ----------
    rows : sequence of mapping
        Whose errors of the features are above: of one precision, and one depth for each L.
    last : sequence of mapping
        Whose absolute errors of the predictions are below.
    file : Path
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    degrees = sorted({row["L"] for row in rows})
    figure, axes = _panels(plt, 2, len(degrees))
    shown = (
        (rows, "features", "relative error of the features"),
        (last, "absolute", "absolute error of the prediction"),
    )
    for line, (chosen, measure, what) in zip(axes, shown, strict=True):
        for axis, degree in zip(line, degrees, strict=True):
            here = [row for row in chosen if row["L"] == degree]
            for name, (label, colour, marker) in STYLES.items():
                points = sorted((row["S"], row[measure]) for row in here if row["points"] == name)
                if points:
                    x, y = zip(*points, strict=True)
                    axis.loglog(x, y, color=colour, marker=marker, markersize=5, label=label)
            axis.set_title(f"L = {degree}, {_depth(here)}", fontsize=10)
            axis.set_xlabel("points S")
            ticks = sorted({row["S"] for row in here if _plain(row)})
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        line[0].set_ylabel(what)
    _finish(plt, figure, axes, file)


def _panels(plt: Any, lines: int, columns: int) -> tuple[Any, np.ndarray]:
    """Figure with room for the legend of :data:`STYLES`, whatever the number of columns."""
    size = (max(3.7 * columns, 7.0), 3.3 * lines + 0.8)
    return plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")


def _finish(plt: Any, figure: Any, axes: np.ndarray, file: Path) -> None:
    """Legend below, and the file."""
    handles, labels = axes[0, 0].get_legend_handles_labels()
    columns = 4 if axes.shape[1] > 2 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _depth(rows: Sequence[Mapping[str, Any]]) -> str:
    """Layers and precision of rows that have them in common."""
    layers = " or ".join(str(number) for number in sorted({row["layers"] for row in rows}))
    kinds = " or ".join(sorted({row["dtype"] for row in rows}))
    return f"{layers} layer{'' if layers == '1' else 's'}, {kinds}"


def _plain(row: Mapping[str, Any]) -> bool:
    return not row["points"].startswith("product")


def plot_bounds(
    rows: Sequence[Mapping[str, Any]],
    laws: Mapping[int, Mapping[str, PowerLaw]],
    ratios: Mapping[int, float],
    file: Path,
) -> None:
    """Error against cap discrepancy, degree and smooth discrepancy, a column of panels for each L.

    Rows have ``smooth``, the discrepancy of the kernel that fits their L best.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measures = ("cap_discrepancy", "degree", "smooth")
    figure, axes = _panels(plt, len(measures), len(laws))
    for column, degree in zip(axes.T, laws, strict=True):
        chosen = [row for row in rows if row["L"] == degree]
        for axis, measure in zip(column, measures, strict=True):
            for name, (label, colour, marker) in STYLES.items():
                points = [
                    (row[measure], row["features"]) for row in chosen if row["points"] == name
                ]
                if points:
                    axis.plot(
                        *zip(*points, strict=True), color=colour, marker=marker, markersize=5,
                        ls="", label=label,
                    )  # fmt: skip
            axis.set_yscale("log")
            axis.grid(alpha=0.3)
            if measure in laws[degree]:
                _draw_law(axis, laws[degree][measure], [row[measure] for row in chosen])
        column[0].set_title(f"L = {degree}, {_depth(chosen)}", fontsize=10)
        column[0].set_xlabel("cap discrepancy")
        column[0].set_xticks(CAP_TICKS, [str(tick) for tick in CAP_TICKS])
        column[0].tick_params(axis="x", which="minor", labelbottom=False)
        column[1].set_xlabel("degree of exactness")
        column[1].xaxis.get_major_locator().set_params(integer=True)
        column[2].set_xlabel(f"smooth discrepancy, r = {ratios[degree]:.2f}")
    for axis in axes[:, 0]:
        axis.set_ylabel("relative error of the features")
    _finish(plt, figure, axes, file)


def _draw_law(axis: Any, law: PowerLaw, measure: Sequence[float]) -> None:
    """Fit and upper bound, on logarithmic axes."""
    axis.set_xscale("log")
    x = np.geomspace(min(measure), max(measure), 2)
    axis.plot(x, law.factor * x**law.exponent, color="0.4", lw=1)
    axis.plot(x, law.bound * x**law.exponent, color="0.4", lw=1, ls="--")
