"""Figure of the study: errors of all variants, number of experts, error against latency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from buildingblocks.statistics import Comparison, by_variant, mean_and_error
from buildingblocks.variants import FULL, PAPER_EXPERTS, TABLES, VARIANTS

COLOURS = {"lower": "tab:green", "higher": "tab:red", "inside the noise": "0.45"}


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
    top, bottom = right.subplots(2, 1)
    _experts(top, errors)
    steps = by_variant(rows, "step_ms")
    for variant in shown:
        x = mean_and_error(steps[variant.name].values())[0]
        y, error = mean_and_error(errors[variant.name].values())
        colour = f"C{list(TABLES).index(variant.table)}"
        bottom.errorbar(
            x, y, yerr=0 if math.isnan(error) else error, fmt="o", color=colour, markersize=3,
            capsize=1,
        )  # fmt: skip
        if variant.table in ("blocks", "parts"):
            bottom.annotate(variant.name, (x, y), fontsize=6, xytext=(3, 2),
                            textcoords="offset points")  # fmt: skip
    bottom.set(xlabel="ms a training step", ylabel="test MAE, bohr$^3$", xscale="log", yscale="log")
    plain_ticks(axis.xaxis)
    for side in (bottom.xaxis, bottom.yaxis):
        plain_ticks(side)
    figure.savefig(path, dpi=130)
    plt.close(figure)


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
