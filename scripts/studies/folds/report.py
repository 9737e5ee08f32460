"""Results of runs in a CSV file, and their means and spreads."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from folds.training import Run

FIGURES = (
    "epochs", "accuracy", "accuracy_back", "accuracy_laboratory", "accuracy_best_epoch",
    "error_start", "error_end", "difference_start", "difference_end", "seconds",
)  # fmt: skip
KEYS = tuple(field.name for field in fields(Run))
Row = dict[str, str]


def key_of(run: Run) -> tuple[str, ...]:
    """What identifies a run in the file."""
    return tuple(str(value) for value in asdict(run).values())


def read(path: Path) -> list[Row]:
    """Rows of the file, none if there is none."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, run: Run, figures: dict[str, object]) -> None:
    """Add a run's row."""
    new = not path.is_file()
    with open(path, "a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(KEYS + FIGURES)
        shown = [figures[name] for name in FIGURES]
        shown = [f"{value:.4g}" if isinstance(value, float) else value for value in shown]
        writer.writerow([*key_of(run), *shown])


def select(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """Rows with the given values."""
    texts = {name: str(value) for name, value in wanted.items()}
    return [row for row in rows if all(row[name] == text for name, text in texts.items())]


def values(rows: Iterable[Row], name: str) -> np.ndarray:
    """One figure of the rows as numbers."""
    return np.array([float(row[name]) for row in rows])


def percent(rows: list[Row], name: str) -> str:
    """Mean and standard deviation over seeds of an accuracy, as the paper prints it."""
    if not rows:
        return "-"
    numbers = values(rows, name)
    return f"{numbers.mean():.1f} ± {numbers.std():.1f}"


def geometric(rows: list[Row], name: str) -> str:
    """Geometric mean over seeds, nothing below rounding."""
    if not rows:
        return "-"
    return f"{float(np.exp(np.log(np.maximum(values(rows, name), 1e-16)).mean())):.0e}"


def markdown(header: list[str], lines: Iterable[list[str]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def grid(
    first: str, rows: list[str], columns: Iterable[object], cell: Callable[[int, object], str]
) -> str:
    """Table with a named row each and a fold each column; ``cell`` gives the text."""
    names = list(columns)
    header = [first, *(f"{fold}-fold" for fold in names)]
    lines = ([name, *(cell(i, fold) for fold in names)] for i, name in enumerate(rows))
    return markdown(header, lines)
