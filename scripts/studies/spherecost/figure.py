"""Figure of the study: cost against S, L and operations; error against S and latency."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from buildingblocks.figure import place_names, plain_ticks
from buildingblocks.statistics import by_variant, mean_and_error
from report.exponents import exponent

from spherecost.accuracy import SIZES, STEPS, TIME, of_budget
from spherecost.subjects import SUBJECTS

Rows = Sequence[Mapping[str, str]]


def draw(costs: Rows, rows: Rows, path: Path) -> None:
    """Draw what there is into a PNG file."""
    from est_ocp.evaluation.figures import pyplot

    plt = pyplot()
    from matplotlib.ticker import LogLocator

    columns = 4 if rows else 3
    figure, axes = plt.subplots(2, columns, figsize=(3.75 * columns, 7), layout="constrained")
    for line, sweep in zip(axes, ("S", "L"), strict=True):
        for axis, key, label in zip(
            line, ("train", "memory_gib"), ("ms, forward and backward", "GiB"), strict=False
        ):
            _cost(axis, costs, sweep, key)
            axis.set(xlabel=sweep, ylabel=label, xscale="log", yscale="log")
            ticks = sorted({int(row[sweep]) for row in costs if row["sweep"] == sweep})
            axis.set_xticks(ticks, _apart(ticks), fontsize=7)
            axis.set_xticks([], minor=True)
            plain_ticks(axis.yaxis)
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    handles, labels = axes[0][0].get_legend_handles_labels()
    if handles:
        for colour, style, label in (("0.4", "--", "fitted power law"), ("none", "", "")):
            handles += axes[0][0].plot([], [], style, color=colour, linewidth=0.8)
            labels.append(label)
        figure.legend(handles, labels, loc="outside upper left", ncols=5, fontsize=8)
    _operations(axes[0][2], costs)
    if rows:
        _errors(axes[1][2], rows, "test_mae", "test MAE of alpha, bohr$^3$")
        _errors(axes[0][3], rows, "rotation_error", "change under rotation, bohr$^3$")
        place_names(axes[1][3], _pareto(axes[1][3], rows))
    else:
        axes[1][2].set_axis_off()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _apart(ticks: Sequence[int]) -> list[str]:
    """Labels of ticks on a logarithmic axis, none where the next one is too near."""
    nexts = [*ticks[1:], math.inf]
    return [
        str(tick) if after > 1.2 * tick else "" for tick, after in zip(ticks, nexts, strict=True)
    ]


def _cost(axis: Any, costs: Rows, sweep: str, key: str) -> None:
    """Time or memory of all subjects with fits; hollow and pale without CUDA graphs."""
    for number, (name, subject) in enumerate(SUBJECTS.items()):
        some = [row for row in costs if (row["subject"], row["sweep"]) == (name, sweep)]
        hollow = {"marker": "o", "markerfacecolor": "white", "alpha": 0.5}
        styles = {key: {"marker": "o"}}
        if key == "train":
            styles = {"train_ms": hollow, "train_graph_ms": {"marker": "s"}}
        for column, style in styles.items():
            points = [(int(row[sweep]), float(row[column])) for row in some if row[column]]
            if points:
                x, y = zip(*points, strict=True)
                label = subject.label + (", CUDA graph" if "graph" in column else "")
                axis.plot(x, y, color=f"C{number}", label=label, markersize=3, **style)
                _fit(axis, x, y, f"C{number}")


def _fit(axis: Any, x: Sequence[float], y: Sequence[float], colour: str) -> None:
    """The power law of the page's exponent, if there are three different ``x``."""
    if len(set(x)) < 3:
        return
    power, _ = exponent(x, y)
    ends = np.array([min(x), max(x)])
    factor = math.exp(np.log(y).mean() - power * np.log(x).mean())
    axis.plot(ends, factor * ends**power, "--", color=colour, linewidth=0.8)


def _operations(axis: Any, costs: Rows) -> None:
    """Time against counted operations in both sweeps, with fits."""
    for number, name in enumerate(SUBJECTS):
        for sweep, marker in (("S", "o"), ("L", "^")):
            some = [row for row in costs if (row["subject"], row["sweep"]) == (name, sweep)]
            points = [
                (float(row["train_gflop"]), float(row["train_graph_ms"] or row["train_ms"]))
                for row in some
                if row["train_ms"]
            ]
            if points:
                x, y = zip(*points, strict=True)
                axis.plot(x, y, ls="", marker=marker, color=f"C{number}", markersize=3.5)
                _fit(axis, x, y, f"C{number}")
    for sweep, marker in (("S", "o"), ("L", "^")):
        axis.plot([], [], ls="", marker=marker, color="0.4", markersize=4, label=f"{sweep} varies")
    axis.legend(fontsize=7)
    axis.set(
        xlabel="counted GFLOP, forward and backward", ylabel="ms (CUDA graph where there is one)",
        xscale="log", yscale="log",
    )  # fmt: skip


def _errors(axis: Any, rows: Rows, column: str, label: str) -> None:
    """A figure of the trained models against S, in both budgets."""
    lines = ((STEPS, "o-", "black", "equal steps"), (TIME, "s--", "0.6", "equal time"))
    for budget, style, colour, name in lines:
        found = by_variant(of_budget(rows, budget), column)
        points = [
            (s, *mean_and_error(found[f"S {s}"].values())) for s in SIZES if f"S {s}" in found
        ]
        if points:
            x, y, error = zip(*points, strict=True)
            bars = [0 if math.isnan(value) else value for value in error]
            axis.errorbar(
                x, y, yerr=bars, fmt=style, color=colour, capsize=2, markersize=4, label=name
            )
    axis.set(xlabel="S", ylabel=label, xscale="log", yscale="log")
    axis.set_xticks(SIZES, [str(s) for s in SIZES])
    axis.minorticks_off()
    if column == "test_mae":
        plain_ticks(axis.yaxis)
    axis.legend(fontsize=7)


def _pareto(axis: Any, rows: Rows) -> list[tuple[float, float, str, str]]:
    """Error at equal steps against the time of a prediction; the Pareto front as a line.

    Returns marks for :func:`buildingblocks.figure.place_names`.
    """
    some = of_budget(rows, STEPS)
    errors, times = by_variant(some, "test_mae"), by_variant(some, "inference_ms")
    points = sorted(
        (mean_and_error(times[name].values())[0], *mean_and_error(errors[name].values()), name)
        for name in errors
    )
    marks = []
    for x, y, error, name in points:
        colour = "tab:red" if name == "host" else "black"
        bar = 0 if math.isnan(error) else error
        axis.errorbar(
            x, y, yerr=bar, fmt="D" if name == "host" else "o", capsize=2, color=colour,
            markersize=4, linewidth=0.8,
        )  # fmt: skip
        marks.append((x, y, "own feed-\nforward" if name == "host" else name, colour))
        # Bars and the front are kept clear of names, too.
        marks += [(x, y + part * bar, "", colour) for part in np.linspace(-1, 1, 21)]
    front, best = [], math.inf
    for x, y, *_ in points:
        if y < best:
            front.append((x, y))
            best = y
    if front:
        axis.plot(*zip(*front, strict=True), color="0.6", linewidth=1, zorder=0)
    for start, end in itertools.pairwise(front):
        between = np.geomspace(start, end, 22)[1:-1]
        marks += [(float(x), float(y), "", "0.6") for x, y in between]
    axis.set(
        xlabel="ms a batch, inference", ylabel="test MAE, bohr$^3$, equal steps", xscale="log",
        yscale="log",
    )  # fmt: skip
    plain_ticks(axis.xaxis)
    plain_ticks(axis.yaxis)
    axis.margins(x=0.2)
    return marks
