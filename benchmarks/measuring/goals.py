"""The goals of speed and memory, and how far figures reach them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from measuring.records import by_name, number


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes
    ----------
    text : str
        What is asked for.
    wanted : str
        The bound, with its unit.
    reached : str
        The figure, with the row that it comes from; ``not measured`` without one.
    share : float or None
        Figure over bound, or bound over figure where less is better: 1 or more is reached.
    """

    text: str
    wanted: str
    reached: str
    share: float | None

    @property
    def verdict(self) -> str:
        """Whether it is reached, and by how much."""
        if self.share is None:
            return "not measured"
        if self.share >= 1.0:
            return f"reached, {self.share:.2f} x"
        return f"**not reached**, {self.share:.2f} of it"


class Figures:
    """Figures of rows without errors.

    Parameters
    ----------
    rows : iterable of mapping
        Of a run; of several with one name the last counts.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.rows = {name: row for name, row in by_name(rows).items() if not row.get("error")}

    def of(self, name: str, column: str) -> float | None:
        """One figure, or None."""
        return number(self.rows.get(name), column)

    def best(
        self, prefix: str, column: str = "atoms_s", least: bool = False
    ) -> tuple[str, float] | None:
        """Name and figure of the best of the rows whose names begin so."""
        found = [
            (name, value)
            for name, row in self.rows.items()
            if name.startswith(prefix) and (value := number(row, column)) is not None
        ]
        if not found:
            return None
        return (min if least else max)(found, key=lambda item: item[1])

    def infer_batches(self) -> list[tuple[str, float]]:
        """Inference of the EST model on more than one structure."""
        return [
            (name, float(row["atoms_s"]))
            for name, row in self.rows.items()
            if name.startswith("est.infer.") and int(row["batch"]) > 1
        ]


def goals(rows: Iterable[Mapping[str, Any]]) -> list[Goal]:
    """All goals of one run's rows (:data:`measuring.records.COLUMNS`)."""
    figures = Figures(rows)
    train, stock = figures.best("est.train."), figures.best("stock.train.")
    small = min((int(r["batch"]) for r in figures.rows.values() if r["mode"] == "train"), default=0)
    memory = f"train.bf16.{small}"
    out = [_more("training, best precision and batch", 10_000.0, train)]
    out.append(_ratio("training, best, against stock's best", 3.0, train, stock))
    same = f"train.tf32.{small}"
    out.append(
        _ratio(
            f"training, TF32, batch {small}",
            3.0,
            _named(figures, f"est.{same}"),
            _named(figures, f"stock.{same}"),
        )
    )
    large = max(figures.infer_batches(), key=lambda item: item[1], default=None)
    out.append(_more("inference, large batch", 30_000.0, large))
    single = [
        (name, value)
        for precision in ("bf16", "tf32", "fp32")
        if (value := figures.of(name := f"est.infer.{precision}.1", "ms")) is not None
    ]
    out.append(_latency(min(single, key=lambda item: item[1], default=None)))
    ours, theirs = (figures.of(f"{who}.{memory}", "peak_gib") for who in ("est", "stock"))
    text = f"training memory, {small} systems, bf16"
    if ours is None or theirs is None:
        out.append(Goal(text, "half of stock's or less", "not measured", None))
    else:
        reached = f"{ours:.1f} of {theirs:.1f} GiB"
        out.append(
            Goal(text, f"{theirs / 2:.1f} GiB (half of stock's)", reached, theirs / 2 / ours)
        )
    return [*out, *_block(figures)]


def _named(figures: Figures, name: str) -> tuple[str, float] | None:
    value = figures.of(name, "atoms_s")
    return None if value is None else (name, value)


def _more(text: str, bound: float, found: tuple[str, float] | None) -> Goal:
    wanted = f"{bound:,.0f} atoms/s or more"
    if found is None:
        return Goal(text, wanted, "not measured", None)
    return Goal(text, wanted, f"{found[1]:,.0f} atoms/s ({found[0]})", found[1] / bound)


def _ratio(
    text: str, bound: float, ours: tuple[str, float] | None, theirs: tuple[str, float] | None
) -> Goal:
    wanted = f"{bound:.0f} x stock or more"
    if ours is None or theirs is None:
        return Goal(text, wanted, "not measured", None)
    ratio = ours[1] / theirs[1]
    reached = f"{ratio:.2f} x: {ours[1]:,.0f} ({ours[0]}), {theirs[1]:,.0f} ({theirs[0]})"
    return Goal(text, wanted, reached, ratio / bound)


def _latency(found: tuple[str, float] | None) -> Goal:
    text, wanted = "inference, one system of 75 to 80 atoms", "15 ms or less"
    if found is None:
        return Goal(text, wanted, "not measured", None)
    return Goal(text, wanted, f"{found[1]:.1f} ms ({found[0]})", 15.0 / found[1])


def _block(figures: Figures) -> list[Goal]:
    """Against both floors, as the block runs in training where that was measured."""
    text, wanted = "EST update block, forward and backward", "2 x its floor or less"
    floors = {
        "strict floor (arithmetic; input, output and weights moved once)": (
            "arithmetic_ms", "memory_ms",
        ),
        "staged floor (operands and results of every product moved too)": (
            "arithmetic_ms", "memory_ms", "staged_ms",
        ),
    }  # fmt: skip
    found = figures.best("est.block_captured.", "ms", least=True)
    found = found or figures.best("est.block.", "ms", least=True)
    out = []
    for label, columns in floors.items():
        goal = f"{text}: {label}"
        parts = [figures.of(found[0], column) if found else None for column in columns]
        if found is None or None in parts:
            out.append(Goal(goal, wanted, "not measured", None))
            continue
        name, ms = found
        floor = max(parts)
        reached = f"{ms:.2f} ms, {ms / floor:.2f} x {floor:.2f} ms ({name})"
        out.append(Goal(goal, wanted, reached, 2 * floor / ms))
    return out
