"""Parts of a step against the card's limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measuring.tables import markdown

from report.ticks import plain

#: Parts shorter than this share of a step are left out of the figure.
SMALLEST_SHARE = 0.005


@dataclass
class Part:
    """Sums over the kernels of one part of one step.

    Attributes
    ----------
    step, name : str
    calls : int
    ms, gflop, gbyte : float
    """

    step: str
    name: str
    calls: int = 0
    ms: float = 0.0
    gflop: float = 0.0
    gbyte: float = 0.0

    @property
    def intensity(self) -> float | None:
        """Operations a byte; None where no operations or bytes are counted."""
        return self.gflop / self.gbyte if self.gflop and self.gbyte else None

    @property
    def tflop_s(self) -> float:
        """Achieved, 10^12 operations a second."""
        return self.gflop / self.ms if self.ms else 0.0

    @property
    def gb_s(self) -> float:
        """Achieved, 10^9 bytes a second."""
        return 1e3 * self.gbyte / self.ms if self.ms else 0.0


def parts(rows: Iterable[Mapping[str, str]]) -> list[Part]:
    """Add up the rows of ``speed_kernels.csv``, the longest part of each step first."""
    found: dict[tuple[str, str], Part] = {}
    for row in rows:
        key = (row["step"], row["part"])
        part = found.setdefault(key, Part(*key))
        part.calls += int(row["calls"])
        for name in ("ms", "gflop", "gbyte"):
            setattr(part, name, getattr(part, name) + float(row[name]))
    return sorted(found.values(), key=lambda part: (part.step != "train", -part.ms))


def parts_table(rows: list[Mapping[str, str]]) -> str:
    """Time, share and achieved rates of all parts."""
    found = parts(rows)
    totals = {step: sum(p.ms for p in found if p.step == step) for step in ("train", "infer")}
    lines = []
    for part in found:
        counted = part.intensity is not None
        lines.append([
            part.step, part.name, str(part.calls), f"{part.ms:.2f}",
            f"{100 * part.ms / totals[part.step]:.0f}",
            f"{part.intensity:.0f}" if counted else "-",
            f"{part.tflop_s:.1f}" if counted else "-",
            f"{part.gb_s:,.0f}" if part.gbyte else "-",
        ])  # fmt: skip
    header = ["step", "part", "kernels", "ms", "%", "FLOP/byte", "TFLOP/s", "GB/s"]
    return markdown(header, lines)


def roofline(rows: list[Mapping[str, str]], path: Path) -> None:
    """Draw the parts of the training step under the card's roof, and their bandwidth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator

    found = [part for part in parts(rows) if part.step == "train"]
    total = sum(part.ms for part in found)
    shown = [part for part in found if part.ms > SMALLEST_SHARE * total]
    tflop_s, gb_s = (float(rows[0][name]) for name in ("roof_tflop_s", "roof_gb_s"))
    colours = {part.name: f"C{number % 10}" for number, part in enumerate(shown)}
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.0, 4.8), width_ratios=(3, 2))

    counted = [part for part in shown if part.intensity is not None]
    ridge = 1e3 * tflop_s / gb_s
    low = min([ridge / 30, *(part.intensity / 3 for part in counted)])
    high = max([ridge * 30, *(part.intensity * 3 for part in counted)])
    x = np.array([low, ridge, high])
    left.plot(x, np.minimum(tflop_s, gb_s * x / 1e3), color="0.3", linewidth=1.5)
    left.annotate(
        f"{tflop_s:,.4g} TFLOP/s", (high, tflop_s), (-4, 4), textcoords="offset points",
        ha="right", fontsize=8, color="0.3",
    )  # fmt: skip
    for part in counted:
        left.scatter(
            part.intensity, part.tflop_s, s=30 + 600 * part.ms / total, alpha=0.75,
            color=colours[part.name], label=f"{part.name}, {part.ms:.1f} ms",
        )  # fmt: skip
    if counted:
        # Marks of one size beside the names: the areas in the figure are times.
        for handle in left.legend(fontsize=8, loc="lower right").legend_handles:
            handle.set_sizes([40])
    left.set(xscale="log", yscale="log", xlim=(low, high))
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(plain)
    left.yaxis.set_minor_formatter(plt.NullFormatter())
    left.set_xlabel("operations a byte")
    left.set_ylabel("TFLOP/s")
    left.set_title("training step: parts with matrix products; area: time", fontsize=10)
    left.grid(alpha=0.3, which="both", linewidth=0.5)

    moved = [part for part in shown if part.gbyte][::-1]
    place = np.arange(len(moved))
    right.barh(place, [p.gb_s for p in moved], color=[colours[p.name] for p in moved], alpha=0.8)
    right.axvline(gb_s, color="0.3", linewidth=1.5)
    right.annotate(
        f"copy: {gb_s:,.0f} GB/s", (gb_s, 1.0), (-4, -12), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="right", fontsize=8, color="0.3",
    )  # fmt: skip
    right.set_yticks(place, [f"{p.name} ({p.ms:.1f} ms)" for p in moved], fontsize=8)
    right.set_ylim(-0.6, len(moved) + 0.2)
    right.set_xlabel("GB/s of operands and results")
    right.set_title("achieved bandwidth", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
