"""Figures beside those of a stored run on the same card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring.machine import slug
from measuring.records import by_setting, number

#: Share of throughput that may be lost, and of memory that may be added, unnoticed.
TOLERANCE = 0.05
#: Rows that are not this project's: a change of theirs is one of the machine.
NOT_OURS = ("stock", "card")


@dataclass(frozen=True)
class Change:
    """One figure against the stored one.

    Attributes
    ----------
    name : str
        The row.
    column : {"atoms_s", "peak_gib", "error"}
        The figure; ``error`` for a row that failed where it once did not.
    ratio : float
        New over stored; 0 for a failure.
    worse : bool
        Whether this is a loss of more than :data:`TOLERANCE` in a row of this project.
    """

    name: str
    column: str
    ratio: float
    worse: bool


def reference_file(folder: Path, card: str) -> Path:
    """Where a card's figures are stored."""
    return folder / f"{slug(card)}.csv"


def changes(
    rows: Iterable[Mapping[str, Any]], reference: Iterable[Mapping[str, Any]]
) -> list[Change]:
    """Compare rows that both have, compiled or not, and captured or not, alike.

    Returns
    -------
    list of Change
        In the order of ``rows``.
    """
    stored = by_setting(reference)
    out = []
    for setting, row in by_setting(rows).items():
        old, name = stored.get(setting), row["name"]
        if old is None or old.get("error"):
            continue
        ours = row["model"] not in NOT_OURS
        if row.get("error"):
            out.append(Change(name, "error", 0.0, ours))
            continue
        for column in ("atoms_s", "peak_gib"):
            new, before = number(row, column), number(old, column)
            if not new or not before:
                continue
            ratio = new / before
            loss = 1.0 - ratio if column == "atoms_s" else ratio - 1.0
            out.append(Change(name, column, ratio, ours and loss > TOLERANCE))
    return out


def lines(found: Iterable[Change]) -> list[str]:
    """One line of text for each change."""
    what = {"atoms_s": "atoms/s", "peak_gib": "peak memory"}
    out = []
    for change in found:
        mark = "  WORSE" if change.worse else ""
        if change.column == "error":
            out.append(f"{change.name}: failed, but has a stored figure{mark}")
        else:
            out.append(f"{change.name}: {what[change.column]} {change.ratio:.3f} x stored{mark}")
    return out
