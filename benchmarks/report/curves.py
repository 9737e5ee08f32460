"""Training curves in two precisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from measuring.tables import markdown

from report.ticks import plain

COLOURS = {"bf16": "tab:blue", "tf32": "tab:orange", "fp32": "tab:green"}
STYLES = ("-", "--", ":", "-.")


def runs(rows: Iterable[Mapping[str, str]], split: str) -> dict[tuple[str, str], list]:
    """Steps and losses of each precision and seed."""
    out: dict[tuple[str, str], list] = {}
    for row in rows:
        if row["split"] == split:
            point = (int(row["step"]), float(row["loss"]))
            out.setdefault((row["precision"], row["seed"]), []).append(point)
    return out


def curves_table(rows: Iterable[Mapping[str, str]]) -> str:
    """Held-out figures at the end."""
    lines = [
        [row["precision"], row["seed"], row["step"], f"{float(row['loss']):.3f}",
         f"{1e3 * float(row['energy_mae']):.1f}", f"{1e3 * float(row['force_mae']):.2f}"]
        for row in rows if row["split"] == "val"
    ]  # fmt: skip
    header = ["precision", "seed", "steps", "held-out loss", "energy MAE, meV"]
    return markdown([*header, "force MAE, meV/Å"], lines)


def plot_curves(rows: list[Mapping[str, str]], path: Path) -> None:
    """Draw the losses of all runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7.0, 4.2))
    seen: dict[str, int] = {}
    found = runs(rows, "train")
    # The first ones are broad: curves that agree stay visible.
    widths = [1.2 + 1.2 * (len(found) - 1 - place) for place in range(len(found))]
    for width, ((precision, seed), points) in zip(widths, found.items(), strict=True):
        number = seen.setdefault(precision, 0)
        seen[precision] += 1
        axis.plot(
            *zip(*points, strict=True), STYLES[number % len(STYLES)],
            color=COLOURS.get(precision, "0.4"), linewidth=width, label=f"{precision}, seed {seed}",
        )  # fmt: skip
    axis.set(xlabel="step", ylabel="training loss", yscale="log")
    axis.yaxis.set_major_formatter(plain)
    axis.yaxis.set_minor_formatter(plain)
    axis.grid(alpha=0.3, which="both", linewidth=0.5)
    axis.legend(fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
