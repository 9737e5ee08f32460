"""Figure of the study: errors of all variants, number of experts, error against latency."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from buildingblocks.statistics import Comparison, by_variant, mean_and_error
from buildingblocks.variants import FULL, PAPER_EXPERTS, TABLES, VARIANTS, Variant

COLOURS = {"lower": "tab:green", "higher": "tab:red", "inside the noise": "0.45"}
#: Error against latency: legend, colour and marker of each table's variants. The colours are
#: none of those above, which say something else.
STYLES = {
    "blocks": ("building blocks", "#7570b3", "o"),
    "parts": ("parts, own feed-forward", "#d95f02", "D"),
    "sampling": ("points on the sphere", "#66a61e", "^"),
    "options": ("options", "#e7298a", "s"),
    "experts": ("number of experts", "#1b9e77", "P"),
    "top_k": ("top-K", "#a6761d", "v"),
    "balance": ("balance loss", "#e6ab02", "X"),
}
#: There, names that are clearer than the variants' own; variants of some tables have none.
SHORT = {
    FULL: "all of EST's update", "e3nn grid": "e3nn's grid, plain", "host": "own feed-forward",
    "point norm": "norm at points", "heads 4": "4 heads", "authors": "authors' code",
    "steerable only": "steerable only (6)",
}  # fmt: skip
NAMED = ("blocks", "parts", "experts")
NAMED_OPTIONS = ("point norm", "heads 4", "authors")


def draw(rows: Sequence[Mapping[str, str]], found: Mapping[str, Comparison], path: Path) -> None:
    """Draw the figure of all trainings of a CSV into a PNG file."""
    from est_ocp.evaluation.figures import pyplot

    plt = pyplot()
    errors = by_variant(rows, "test_mae")
    shown = [v for table in TABLES for v in VARIANTS if v.table == table and v.name in errors]
    height = max(5.0, 0.21 * len(shown) + 1.0)
    figure = plt.figure(figsize=(11, height), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.25, 1))
    axis = left.subplots()
    for place, variant in enumerate(shown):
        mean, error = mean_and_error(errors[variant.name].values())
        comparison = found.get(variant.name)
        colour = "tab:blue" if comparison is None else COLOURS[comparison.verdict]
        axis.errorbar(
            mean, place, xerr=0 if math.isnan(error) else error, fmt="o", color=colour,
            markersize=4, capsize=2,
        )  # fmt: skip
    if FULL in errors:
        axis.axvline(mean_and_error(errors[FULL].values())[0], color="tab:blue", linewidth=0.7)
    axis.set_yticks(range(len(shown)), [f"{v.table}: {v.label}" for v in shown], fontsize=7)
    axis.invert_yaxis()
    axis.set(xlabel="test MAE of alpha, bohr$^3$", xscale="log")
    left.suptitle(
        "mean and standard error; blue: a reference; green, red: beyond the noise", fontsize=8
    )
    top, bottom = right.subplots(2, 1, height_ratios=(1, 1.5))
    _experts(top, errors)
    marks = _latency(bottom, shown, errors, by_variant(rows, "step_ms"))
    right.legend(*bottom.get_legend_handles_labels(), loc="outside lower center", ncols=3,
                 fontsize=7, columnspacing=1.2)  # fmt: skip
    plain_ticks(axis.xaxis)
    place_names(bottom, marks)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _latency(
    axis: Any,
    shown: Sequence[Variant],
    errors: Mapping[str, Mapping[int, float]],
    steps: Mapping[str, Mapping[int, float]],
) -> list[tuple[float, float, str, str]]:
    """Error against a step's time; returns marks for :func:`place_names`."""
    marks, seen = [], set()
    for variant in shown:
        label, colour, marker = STYLES[variant.table]
        x, y = (mean_and_error(found[variant.name].values())[0] for found in (steps, errors))
        first = variant.table not in seen
        seen.add(variant.table)
        axis.plot(x, y, marker, color=colour, markersize=5, ls="", label=label if first else None)
        name = ""
        if variant.table in NAMED or variant.name in NAMED_OPTIONS:
            name = SHORT.get(variant.name, variant.name.removeprefix("experts "))
        marks.append((x, y, name, colour))
    axis.set(xlabel="ms a training step", ylabel="test MAE, bohr$^3$", xscale="log", yscale="log")
    axis.margins(0.1)
    axis.set_title(
        "means over seeds, standard errors: left; numbers: steerable experts", fontsize=8
    )
    for side in (axis.xaxis, axis.yaxis):
        plain_ticks(side)
    return marks


def place_names(
    axis: Any, marks: Sequence[tuple[float, float, str, str]], fontsize: float = 7
) -> None:
    """Write names beside marks where nothing stands yet, with thin lines to those that are far.

    To be called last: the figure's layout is fixed here.

    Parameters
    ----------
    axis : Axes
    marks : sequence of (x, y, name, colour)
        All that is drawn; those with an empty name are only kept clear.
    fontsize : float
    """
    if not marks:
        return
    figure = axis.get_figure(root=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    pixel = figure.dpi / 72
    at = axis.transData.transform([mark[:2] for mark in marks]) / pixel
    inside = axis.bbox.min / pixel, axis.bbox.max / pixel
    boxes: list[tuple[np.ndarray, np.ndarray]] = []
    for (x, y, name, colour), point in zip(marks, at, strict=True):
        if not name:
            continue
        text = axis.annotate(
            name, (x, y), xytext=(0, 0), textcoords="offset points", ha="center", va="center",
            fontsize=fontsize, color=colour, zorder=4, linespacing=1.0,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0,
                        "shrinkB": 2},
        )  # fmt: skip
        extent = text.get_window_extent()
        half = np.array([extent.width, extent.height]) / pixel / 2 + 1
        others = at[np.abs(at - point).max(1) > 2]
        tried = [(distance, point + way) for distance, way in _ways(half)]
        costs = [
            distance + _cost(point, centre, half, inside, others, boxes)
            for distance, centre in tried
        ]
        centre = tried[int(np.argmin(costs))][1]
        boxes.append((centre, half))
        text.xyann = tuple(centre - point)


def _ways(half: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """Distance, and way from a mark to the centre of its name, of half this size; in points."""
    for distance in (4, 8, 14, 20, 28, 36, 46, 58, 72):
        for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False):
            yield distance, np.array([math.cos(angle), math.sin(angle)]) * (distance + half)


def _cost(
    point: np.ndarray,
    centre: np.ndarray,
    half: np.ndarray,
    inside: tuple[np.ndarray, np.ndarray],
    others: np.ndarray,
    boxes: Sequence[tuple[np.ndarray, np.ndarray]],
) -> float:
    """How bad a name's place is: over the axes' edge, on marks or names, its line over others."""
    line = point + np.linspace(0, 1, 20)[:, None] * (centre - point)
    line = line[(np.abs(line - centre) > half).any(1)]
    cost = 1e5 * ((centre - half < inside[0]) | (centre + half > inside[1])).any()
    cost += 100 * (np.abs(np.vstack((others, point)) - centre) < half + 3).all(1).sum()
    cost += 15 * (np.abs(line[:, None] - others).max(-1) < 3).any(0).sum()
    for other, size in boxes:
        cost += 1e4 * (np.abs(other - centre) < half + size).all()
        cost += 500 * (np.abs(line - other) < size).all(1).any()
    return float(cost)


def _experts(axis, errors: Mapping[str, Mapping[int, float]]) -> None:
    """Error against the number of steerable experts, ours and the paper's over one expert's."""
    numbers = [n for n in PAPER_EXPERTS if f"experts {n}" in errors]
    if 1 in numbers:
        means = {n: mean_and_error(errors[f"experts {n}"].values()) for n in numbers}
        one = means[1][0]
        axis.errorbar(
            numbers, [means[n][0] / one for n in numbers],
            yerr=[0 if math.isnan(means[n][1]) else means[n][1] / one for n in numbers],
            fmt="o-", capsize=2, label="ours",
        )  # fmt: skip
    paper = list(PAPER_EXPERTS)
    ratios = [PAPER_EXPERTS[n] / PAPER_EXPERTS[1] for n in paper]
    axis.plot(paper, ratios, "s--", color="0.6", label="the paper's")
    axis.set(xlabel="steerable experts", ylabel="MAE over that of one expert", xscale="log")
    axis.set_xticks(paper, [str(n) for n in paper])
    axis.minorticks_off()
    axis.legend(fontsize=7)


def plain_ticks(axis) -> None:
    """Numbers as they are on a logarithmic axis of less than a decade or two."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
