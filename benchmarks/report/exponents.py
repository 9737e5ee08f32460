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


def exponents(rows: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Exponents of time and memory in every sweep of three rows or more."""
    good = [row for row in rows if not row["error"]]
    out = []
    for sweep in LABELS:
        some = [row for row in good if row["sweep"] == sweep]
        for quantity in ("ms", "memory_gib"):
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
    """Draw time and memory of all sweeps with their fits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    good = [row for row in rows if not row["error"]]
    figure, axes = plt.subplots(2, len(LABELS), figsize=(13.0, 5.2), squeeze=False)
    quantities = (("ms", "ms a step", "tab:blue"), ("memory_gib", "GiB", "tab:red"))
    for column, (sweep, label) in enumerate(LABELS.items()):
        some = [row for row in good if row["sweep"] == sweep]
        for line, (quantity, unit, colour) in enumerate(quantities):
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
            if line == 1:
                axis.set_xlabel(label)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _few_ticks(axis: Any, y: np.ndarray) -> None:
    """Ticks at the least, middle and largest value: a decade may hold none of its own."""
    if len(y):
        low, high = y.min(), y.max()
        axis.set_yticks(sorted({low, math.sqrt(low * high), high}))
        axis.minorticks_off()
