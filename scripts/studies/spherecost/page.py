"""Page of the study from its CSV files alone: exponents, tables, reading."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from buildingblocks.page import cell, change
from buildingblocks.runner import CSV, TRAININGS, kept_remarks, origin_lines, table
from buildingblocks.statistics import Comparison, by_variant, compare, mean_and_error
from csv_rows import append, read
from report.exponents import exponent

from est_ocp.errors import ConfigError
from spherecost.accuracy import REFERENCE, SIZES, STEPS, TIME, of_budget
from spherecost.cost import COLUMNS
from spherecost.figure import draw
from spherecost.subjects import SUBJECTS

COST = "cost.csv"
READING, FIGURES = "## Reading", "### Fits and comparisons"
#: What is fitted, and the count that it stands beside.
QUANTITIES = {
    "forward": ("forward_ms", "forward_gflop"),
    "forward, graph": ("forward_graph_ms", "forward_gflop"),
    "training": ("train_ms", "train_gflop"),
    "training, graph": ("train_graph_ms", "train_gflop"),
    "memory": ("memory_gib", "train_gflop"),
}
BUDGETS = {STEPS: "equal steps", TIME: "equal time"}

Rows = Sequence[Mapping[str, str]]


def of_sweep(rows: Rows, subject: str, sweep: str) -> Rows:
    """Rows of a subject in which S or L varies."""
    return [row for row in rows if (row["subject"], row["sweep"]) == (subject, sweep)]


def fit(rows: Rows, x: str, y: str) -> tuple[float, float, int] | None:
    """Exponent of ``y`` in ``x``, its standard error, and the number of rows; None below three."""
    good = [(float(row[x]), float(row[y])) for row in rows if row[x] and row[y]]
    if len({value for value, _ in good}) < 3:
        return None
    return *exponent(*zip(*good, strict=True)), len(good)


def text_of(found: tuple[float, float, int] | None) -> str:
    """Exponent with its standard error."""
    return "-" if found is None else f"{found[0]:.2f} ± {found[1]:.2f}"


def exponent_table(rows: Rows) -> list[str]:
    """Exponents of time and memory against S, L and the counted operations."""
    lines = []
    for name, subject in SUBJECTS.items():
        for sweep in ("S", "L"):
            some = of_sweep(rows, name, sweep)
            for quantity, (measured, counted) in QUANTITIES.items():
                against = fit(some, sweep, measured)
                if against is None:
                    continue
                work = fit(some, sweep, counted)
                lines.append(
                    [subject.label, sweep, quantity, text_of(against), text_of(work),
                     text_of(fit(some, counted, measured))]
                )  # fmt: skip
    head = ["what", "against", "quantity", "exponent", "of counted operations",
            "quantity against operations"]  # fmt: skip
    return table(head, lines) if lines else []


def cost_table(rows: Rows, sweep: str) -> list[str]:
    """All figures of one sweep."""
    head = ["what", "S", "L", "of", "forward ms", "graph", "training ms", "graph", "GiB",
            "GFLOP training", ""]  # fmt: skip
    lines = []
    for name, subject in SUBJECTS.items():
        for row in of_sweep(rows, name, sweep):
            numbers = [
                f"{float(row[key]):.3g}" if row[key] else "-"
                for key in ("forward_ms", "forward_graph_ms", "train_ms", "train_graph_ms",
                            "memory_gib", "train_gflop")
            ]  # fmt: skip
            size = f"{row['size']} {subject.unit}"
            lines.append([subject.label, row["S"], row["L"], size, *numbers, row["note"]])
    return table(head, lines)


def accuracy(rows: Rows) -> tuple[list[str], dict[str, dict[str, Comparison]]]:
    """Table of errors against S in both budgets, and each size against the reference."""
    lines, all_found = [], {}
    for budget, label in BUDGETS.items():
        some = of_budget(rows, budget)
        names = [f"S {points}" for points in SIZES] + ["host"]
        errors = by_variant(some, "test_mae")
        pairs = [(name, f"S {REFERENCE}") for name in names]
        found = {pair[0]: c for pair, c in compare(errors, pairs).items()}
        all_found[budget] = found
        columns = {
            key: by_variant(some, key)
            for key in ("rotation_error", "step_ms", "inference_ms", "steps")
        }
        for name in names:
            if name not in errors:
                continue
            mean = {k: mean_and_error(values[name].values())[0] for k, values in columns.items()}
            lines.append(
                [label, "own feed-forward" if name == "host" else name.split()[1],
                 cell(errors[name], 4), change(found.get(name)), f"{mean['rotation_error']:.1e}",
                 f"{mean['step_ms']:.2f}", f"{mean['inference_ms']:.2f}", f"{mean['steps']:.0f}"]
            )  # fmt: skip
    head = ["budget", "S", "test MAE, bohr^3", f"against S = {REFERENCE}", "rotation error, bohr^3",
            "ms a step", "ms inference", "steps"]  # fmt: skip
    return table(head, lines), all_found


def reading(costs: Rows, found: Mapping[str, Mapping[str, Comparison]], rows: Rows) -> str:
    """One paragraph of what the figures say, and nothing inside the noise."""
    out = []
    for name, subject in SUBJECTS.items():
        for sweep in ("S", "L"):
            some = of_sweep(costs, name, sweep)
            keys = ("train_graph_ms", "train_ms")
            measured = next((key for key in keys if fit(some, sweep, key)), None)
            if measured is None:
                continue
            time, work = fit(some, sweep, measured), fit(some, sweep, "train_gflop")
            how = " as a CUDA graph" if measured == "train_graph_ms" else ""
            out.append(
                f"{subject.label}: training{how} takes {sweep}^{time[0]:.2f} where the counted "
                f"operations go as {sweep}^{work[0]:.2f}."
            )
    for budget, comparisons in found.items():
        sized = {name: c for name, c in comparisons.items() if not math.isinf(c.noise)}
        beyond = [
            f"{'own feed-forward' if name == 'host' else name} {c.percent:+.1f}%"
            for name, c in sized.items()
            if c.verdict != "inside the noise"
        ]
        if sized:
            noise = 100 * math.expm1(max(c.noise for c in sized.values()))
            what = ", ".join(beyond) if beyond else "nothing"
            out.append(
                f"At {BUDGETS[budget]}, beyond the noise (up to {noise:.1f}%) of errors against "
                f"those of S = {REFERENCE}: {what}; of all others nothing is claimed."
            )
    changes = by_variant([row for row in rows if row["budget"] == STEPS], "rotation_error")
    means = {s: mean_and_error(changes[f"S {s}"].values())[0] for s in SIZES if f"S {s}" in changes}
    if len(means) > 1:
        first, last = min(means), max(means)
        out.append(
            f"From S = {first} to {last} the trained models' change under rotation goes from "
            f"{means[first]:.1e} to {means[last]:.1e} bohr^3."
        )
    return " ".join(out) if out else "Nothing was measured yet."


def kept_summary(page: Path) -> list[str]:
    """The hand-written paragraph under :data:`READING` of an earlier page, if there is one."""
    text = page.read_text() if page.is_file() else ""
    start, end = text.find(f"\n{READING}\n"), text.find(f"\n{FIGURES}\n")
    summary = text[start + len(READING) + 2 : end].strip() if 0 <= start < end else ""
    return [summary, ""] if summary else []


def write_page(page: Path, out: Path) -> Path:
    """Write page, figure and CSVs.

    What is written between :data:`READING` and :data:`FIGURES` of an earlier page, and its section
    ``## Remarks``, stay.

    Parameters
    ----------
    page : path
        Markdown file; figure and CSVs stand beside it under its name.
    out : path
        Folder of ``cost.csv`` and ``trainings.csv``; either may be missing.
    """
    costs, rows = read(out / COST), read(out / CSV)
    page.parent.mkdir(parents=True, exist_ok=True)
    for suffix, columns, content in (("cost", COLUMNS, costs), ("trainings", TRAININGS, rows)):
        copy_ = page.with_name(f"{page.stem}_{suffix}.csv")
        copy_.unlink(missing_ok=True)
        if content:
            append(copy_, columns, content)
    image = page.with_suffix(".png")
    try:
        draw(costs, rows, image)
    except ConfigError as error:
        print(error)
    errors, found = accuracy(rows)
    cards = ", ".join(sorted({row["card"] for row in (*costs, *rows)}))
    file = out / "protocol.json"
    protocol = json.loads(file.read_text()) if file.is_file() and rows else None
    lines = [
        "# Points on the sphere: accuracy, time, memory",
        "",
        "## Question",
        "",
        "How do time and memory of EST grow with the number of points S and the degree L, against",
        "the operations that one counts; and what do more points give in accuracy?",
        "",
        "## Method",
        "",
        "*Cost.* EST's update and message blocks, and two whole models (the S2EF model of 45M",
        "parameters; the QM9 model with both blocks), on Lebedev rules. S varies at each one's",
        "own L, L at S = 146 (exact to degree 19). *training* is forward and backward;",
        "*graph* the replay of the same as a CUDA graph, which takes the starting of kernels out.",
        "Medians of three groups of five runs; float32 with TF32 products on GPUs; layers not",
        "compiled. Memory: on GPUs the peak of forward and backward above weights, on a CPU what",
        "autograd keeps. Operations: two a multiply-add of every matrix product in the forms that",
        "run without kernels, nothing computed twice, elementwise work not counted. Exponents:",
        "least squares of logarithms with their standard errors, *quantity against operations*",
        "being 1 where time follows the count.",
        "",
    ]
    if protocol:
        lines += [
            "*Accuracy.* The base model of the [study of building blocks](building_blocks.md)",
            f"on QM9 alpha with Lebedev rules of different sizes, {protocol['steps']} steps of",
            f"{protocol['batch_size']} molecules; then as many steps as fit into the time that",
            f"S = {REFERENCE} took for those, by each one's own step alone on the card (the",
            "learning rate rises and falls over these). Paired seeds; differences are of the",
            "errors' logarithms, with the bound for all sizes of a budget at once (95%,",
            "Bonferroni).",
            "*rotation error*: mean change of the prediction when a molecule is turned, float64.",
            "",
        ]
    lines += [
        "The paper gives no figures of this: its Table 5 has the equivariance error alone against",
        "the number of points, without trainings and times; its QM9 model takes S = 64 at L = 2",
        "(*theirs*), chosen without a comparison that is shown.",
        "",
        "## Command",
        "",
        *origin_lines(out),
        "",
        f"Measured on: {cards}.",
        "",
        "## Exponents",
        "",
        *exponent_table(costs),
        "",
    ]
    if image.is_file():
        lines += [
            f"![Time and memory against S and L; error against S and latency]({image.name})",
            "",
            "Thin dashed lines: the fits of the table.",
        ]
    if rows:
        lines += ["", "## Accuracy against S", "", *errors]
    for sweep in ("S", "L"):
        if any(row["sweep"] == sweep for row in costs):
            lines += ["", f"## Time and memory against {sweep}", "", *cost_table(costs, sweep)]
    lines += ["", READING, "", *kept_summary(page)]
    lines += [FIGURES, "", reading(costs, found, rows), *kept_remarks(page)]
    page.write_text("\n".join(lines) + "\n")
    return page
