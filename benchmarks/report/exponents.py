"""How time and memory grow: exponents of sweeps, their table and figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring.tables import markdown

from report.ticks import plain

#: What the sweeps are called on axes.
LABELS = {
    "atoms": "atoms a batch",
    "neighbours": "neighbours an atom",
    "points": "points S",
    "degree": "degree L",
    "layers": "layers",
}


def exponent(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Exponent k of ``y = a x^k`` by least squares of the logarithms, and its standard error.

    Parameters
    ----------
    x, y : sequence of float
        Positive, three or more, not all x alike.
    """
    log_x, log_y = np.log(np.asarray(x)), np.log(np.asarray(y))
    centred = log_x - log_x.mean()
    spread = (centred**2).sum()
    slope = (centred * log_y).sum() / spread
    residual = log_y - log_y.mean() - slope * centred
    variance = (residual**2).sum() / max(len(log_x) - 2, 1)
    return float(slope), math.sqrt(variance / spread)


def measured(
    rows: Iterable[Mapping[str, str]], sweep: str, quantity: str
) -> list[Mapping[str, str]]:
    """Rows of a sweep that have a quantity."""
    return [row for row in rows if row["sweep"] == sweep and row[quantity]]


def exponents(rows: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Exponents of time and memory in every sweep that has three rows or more with them."""
    good = [row for row in rows if not row["error"]]
    out = []
    for sweep in LABELS:
        for quantity in ("ms", "memory_gib"):
            some = measured(good, sweep, quantity)
            if len({row["x"] for row in some}) < 3:
                continue
            x, y = ([float(row[name]) for row in some] for name in ("x", quantity))
            k, error = exponent(x, y)
            out.append(
                {"sweep": sweep, "quantity": quantity, "exponent": round(k, 4),
                 "standard_error": round(error, 4), "rows": len(some)}
            )  # fmt: skip
    return out


def exponents_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Exponents in Markdown."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        text = f"{float(row['exponent']):.2f} ± {float(row['standard_error']):.2f}"
        cells.setdefault(row["sweep"], {})[row["quantity"]] = text
    lines = [
        [LABELS[sweep], found.get("ms", "-"), found.get("memory_gib", "-")]
        for sweep, found in cells.items()
    ]
    return markdown(["against", "time", "memory"], lines)


def plot(rows: Iterable[Mapping[str, str]], path: Path) -> None:
    """Draw time and memory of the sweeps that have an exponent, with their fits; else nothing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    good = [row for row in rows if not row["error"]]
    fits = {(fit["sweep"], fit["quantity"]) for fit in exponents(good)}
    if not fits:
        return
    sweeps = [sweep for sweep in LABELS if any(sweep == found for found, _ in fits)]
    units = {"ms": ("ms a step", "tab:blue"), "memory_gib": ("GiB", "tab:red")}
    quantities = [name for name in units if any(name == found for _, found in fits)]
    figure, axes = plt.subplots(
        len(quantities), len(sweeps), squeeze=False,
        figsize=(2.6 * len(sweeps), 0.2 + 2.5 * len(quantities)),
    )  # fmt: skip
    for column, sweep in enumerate(sweeps):
        for line, quantity in enumerate(quantities):
            unit, colour = units[quantity]
            some = measured(good, sweep, quantity)
            axis = axes[line][column]
            x, y = (np.array([float(row[name]) for row in some]) for name in ("x", quantity))
            axis.set(xscale="log", yscale="log")
            axis.plot(x, y, "o", color=colour)
            if len(set(x)) >= 3:
                k, error = exponent(x, y)
                ends = np.array([x.min(), x.max()])
                middle = np.exp(np.log(y).mean() - k * np.log(x).mean())
                axis.plot(ends, middle * ends**k, "-", color="0.5", linewidth=1)
                axis.set_title(f"exponent {k:.2f} ± {error:.2f}", fontsize=9)
            ticks = sorted(set(x))
            axis.set_xticks(ticks, [plain(tick) for tick in ticks], fontsize=8)
            axis.minorticks_off()
            axis.tick_params(labelsize=8)
            axis.yaxis.set_major_formatter(plain)
            _few_ticks(axis, y)
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(unit)
            if line == len(quantities) - 1:
                axis.set_xlabel(LABELS[sweep])
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _few_ticks(axis: Any, y: np.ndarray) -> None:
    """Ticks at the least, middle and largest value: a decade may hold none of its own."""
    if len(y):
        low, high = y.min(), y.max()
        axis.set_yticks(sorted({low, math.sqrt(low * high), high}))
        axis.minorticks_off()
