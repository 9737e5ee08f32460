"""Rows of figures as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

_Key = TypeVar("_Key", bound=Hashable)

#: Columns of the table of goals.
COLUMNS = (
    "name", "model", "mode", "precision", "batch", "compiled", "graphs", "atoms", "steps", "ms",
    "spread_percent", "atoms_s", "peak_gib", "times_stock", "first_s", "arithmetic_ms", "memory_ms",
    "staged_ms", "roof_tflop_s", "roof_gb_s", "error", "card", "torch", "triton", "fairchem",
    "commit", "date", "settings",
)  # fmt: skip


class CsvFile:
    """A CSV file that grows row by row; every row is on the disk when :meth:`add` returns.

    Parameters
    ----------
    path : path
        The file.
    columns : sequence of str
        Its heading; a row may leave columns out.
    keep : bool
        Add to the rows of a file that is there; columns that it lacks are left empty in them.
    """

    def __init__(self, path: Path, columns: Sequence[str], keep: bool = False) -> None:
        self.path, self.columns = path, tuple(columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = read(path) if keep else []
        if kept and tuple(kept[0]) == self.columns:
            return
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(self.columns)
        for row in kept:
            self.add({name: value for name, value in row.items() if name in self.columns})

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one row."""
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none if it is not there."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole file."""
    file = CsvFile(path, columns)
    for row in rows:
        file.add(row)


def by_name(rows: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Rows by their names; of several the last one without an error, or else the last."""
    return _last(rows, lambda row: row["name"])


def by_setting(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    """The same by name, compiled or not, and captured or not; older files lack the last."""

    def setting(row: Mapping[str, Any]) -> tuple[str, str, str]:
        return row["name"], str(row.get("compiled")), str(row.get("graphs") or False)

    return _last(rows, setting)


def _last(
    rows: Iterable[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], _Key]
) -> dict[_Key, Mapping[str, Any]]:
    out: dict[_Key, Mapping[str, Any]] = {}
    for row in rows:
        if not row.get("error") or key(row) not in out or out[key(row)].get("error"):
            out[key(row)] = row
    return out


def number(row: Mapping[str, Any] | None, column: str) -> float | None:
    """A figure of a row, or None where there is none."""
    value = None if row is None else row.get(column)
    return None if value in (None, "") else float(value)
