"""Hosts against the same hosts with EST's update: at equal time and at equal steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from itertools import pairwise

from est_ocp.qm9_targets import TARGETS
from qm9study.models import HOSTS, LABELS
from qm9study.tables import Row, error_text, mean, relative_noise, targets_of, values

#: A difference of so many standard deviations is called one.
DEVIATIONS = 2.0


def pair_tables(rows: list[Row]) -> list[str]:
    """Lines of one table for each EST variant: test errors, and what is noise.

    Parameters
    ----------
    rows : list of dict
        Trainings of one length, each on one target or all on all.
    """
    noise = relative_noise(rows)
    lines = []
    for variant, hosts in HOSTS.items():
        there = [host for host in hosts if _shared_targets(rows, host, variant)]
        if there:
            lines += [*_table(rows, variant, there, noise), ""]
    if lines and noise is None:
        lines += [
            "Bold: the smallest error. Each figure is one training; how much another seed would "
            "change it was not measured.",
            "",
        ]
    elif lines:
        lines += [
            f"Bold: the smallest error. Repeats with other seeds differ by {100 * noise:.1f}% "
            f"(standard deviation, pooled); less than {DEVIATIONS:g} standard deviations of a "
            "difference count as noise.",
            "",
        ]
    return lines


def _shared_targets(rows: list[Row], host: str, variant: str) -> list[str]:
    return [
        target
        for target in targets_of(rows)
        if values(rows, target, host, "test_mae") and values(rows, target, variant, "test_mae")
    ]


def _table(rows: list[Row], variant: str, hosts: list[str], noise: float | None) -> list[str]:
    first, *others = hosts
    heads = ["target", LABELS[first], LABELS[variant], "change"]
    for other in others:
        heads += [LABELS[other], "change from it"]
    lines = [_row(heads), "|---" * len(heads) + "|"]
    for target in targets_of(rows):
        if not any(target in _shared_targets(rows, host, variant) for host in hosts):
            continue
        models = [first, variant, *others]
        means = {model: mean(rows, target, model, "test_mae") for model in models}
        best = min(value for value in means.values() if value is not None)
        cells = {}
        for model, value in means.items():
            text = "" if value is None else error_text(values(rows, target, model, "test_mae"))
            cells[model] = f"**{text}**" if value == best else text
        changes = {host: _change(rows, target, host, variant, noise) for host in hosts}
        line = [f"{target} ({TARGETS[target].table_unit})"]
        line += [cells[first], cells[variant], changes[first]]
        for other in others:
            line += [cells[other], changes[other]]
        lines.append(_row(line))
    return lines


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _change(rows: list[Row], target: str, host: str, variant: str, noise: float | None) -> str:
    own, est = (mean(rows, target, model, "test_mae") for model in (host, variant))
    if own is None or est is None:
        return ""
    change = 100 * (est / own - 1)
    text = f"{change:+.1f}%"
    if noise is None:
        return text
    counts = [len(values(rows, target, model, "test_mae")) for model in (host, variant)]
    deviation = 100 * noise * math.sqrt(sum(1 / count for count in counts))
    return text + (" (noise)" if abs(change) < DEVIATIONS * deviation else "")


def equal_steps(curves: list[Row]) -> list[str]:
    """Lines of a table that compares validation errors of pairs at equal steps and equal time.

    The steps are the most that all of a pair's trainings on a target have; between evaluations the
    logarithm of the error is taken as linear in the steps.

    Parameters
    ----------
    curves : list of dict
        Rows of ``curves.csv`` of one length.
    """
    lines = []
    names = {row["trained_on"] for row in curves}
    for variant, hosts in HOSTS.items():
        for host in hosts:
            for target in [name for name in (*TARGETS, "all") if name in names]:
                of_target = [row for row in curves if row["trained_on"] == target]
                line = _compared(*(_runs(of_target, model) for model in (host, variant)))
                if line:
                    unit = "spreads, mean" if target == "all" else TARGETS[target].table_unit
                    lines.append(_row([LABELS[variant], LABELS[host], f"{target} ({unit})", *line]))
    if not lines:
        return []
    heads = ["with EST", "host", "trained on", "steps", "host's val MAE", "with EST"]
    heads += ["change at equal steps", "change at equal time"]
    return [
        _row(heads),
        "|---" * len(heads) + "|",
        *lines,
        "",
        "Validation errors, at the steps of the one with fewer of them (between evaluations the "
        "logarithm of the error is taken as linear in the steps) and at the end of both. At equal "
        "steps the two learning rates are at other points of their fall: the one with fewer steps "
        "has ended its schedule, the other is still in it, which counts against it.",
        "",
    ]


def _runs(curves: list[Row], model: str) -> list[list[tuple[int, float]]]:
    """Steps and errors of each of a model's trainings."""
    rows = [row for row in curves if row["model"] == model]
    return [
        sorted({int(r["step"]): float(r["val_mae"]) for r in rows if r["seed"] == seed}.items())
        for seed in sorted({row["seed"] for row in rows})
    ]


def _compared(host: list[list[tuple[int, float]]], est: list[list[tuple[int, float]]]) -> list[str]:
    """Cells of one pair; none where the curves have no step in common."""
    runs = [*host, *est]
    if not host or not est:
        return []
    step = min(run[-1][0] for run in runs)
    if step < max(run[0][0] for run in runs):
        return []
    own, other = (statistics.fmean(error_at(run, step) for run in of) for of in (host, est))
    ends = [statistics.fmean(run[-1][1] for run in of) for of in (host, est)]
    changes = [100 * (b / a - 1) for a, b in ((own, other), ends)]
    return [f"{step}", f"{own:.4g}", f"{other:.4g}", *[f"{change:+.1f}%" for change in changes]]


def error_at(run: list[tuple[int, float]], step: int) -> float:
    """Error at a step between a run's first and last, its logarithm linear between evaluations."""
    for (before, first), (after, second) in pairwise(run):
        if before <= step <= after:
            share = (step - before) / (after - before)
            return math.exp((1 - share) * math.log(first) + share * math.log(second))
    return run[-1][1]
