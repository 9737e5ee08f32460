"""Tables of figures in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from measuring.goals import goals
from measuring.records import by_name, by_setting, number


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(value: float | None, form: str) -> str:
    """A figure in a format, or a dash."""
    return "-" if value is None else format(value, form)


def figures_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """All rows with times, and their commits where there are several."""
    shown_rows = by_setting(rows)
    several = len({row.get("commit") for row in shown_rows.values()}) > 1
    lines = []
    for (name, *_), row in shown_rows.items():
        if row["mode"] == "roof":
            continue
        columns = (
            ("atoms", ",.0f"), ("ms", ".2f"), ("spread_percent", ".1f"), ("atoms_s", ",.0f"),
            ("peak_gib", ".1f"), ("times_stock", ".2f"),
        )  # fmt: skip
        how = ["yes" if str(row.get(key)) == "True" else "no" for key in ("compiled", "graphs")]
        if row.get("error"):
            figures = [row["error"], *["-"] * (len(columns) - 1)]
        else:
            figures = [shown(number(row, column), form) for column, form in columns]
        commit = [row.get("commit") or "-"] * several
        lines.append([f"`{name}`", *how, *figures, *commit])
    header = ["row", "compiled", "graphs", "atoms", "median, ms", "spread, %", "atoms/s"]
    return markdown([*header, "peak, GiB", "times stock", *["commit"] * several], lines)


def block_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The EST block beside its floors."""
    lines = []
    for name, row in by_name(rows).items():
        if not row["mode"].startswith("block") or row.get("error"):
            continue
        ms, arithmetic, memory, staged = (
            number(row, column) for column in ("ms", "arithmetic_ms", "memory_ms", "staged_ms")
        )
        floor = max(arithmetic, memory)
        figures = [f"{value:.3f}" for value in (ms, arithmetic, memory, staged)]
        ratios = [f"{ms / floor:.2f}", f"{ms / max(floor, staged):.2f}"]
        lines.append([f"`{name}`", shown(number(row, "atoms"), ",.0f"), *figures, *ratios])
    header = ["row", "atoms", "ms", "arithmetic, ms", "memory, ms", "staged memory, ms"]
    return markdown([*header, "times floor", "times staged floor"], lines)


def goals_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """All goals."""
    lines = [[goal.text, goal.wanted, goal.reached, goal.verdict] for goal in goals(rows)]
    return markdown(["goal", "bound", "figure", "verdict"], lines)
