"""Make docs/results/speed.md and its figures from the CSV files of the benchmarks.

    python benchmarks/page.py
    python benchmarks/page.py --data runs/benchmarks --out /tmp/page

A section whose file is missing says what command makes it. Remarks on how a file came about are
rows of speed_notes.csv (columns file, note). A section "## Reading" of an earlier page is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from measuring.records import number, read
from measuring.tables import block_table, figures_table, goals_table, markdown, shown
from report.curves import curves_table, plot_curves
from report.exponents import exponents, exponents_table
from report.exponents import plot as plot_scaling
from report.roofline import parts_table, roofline

READING = "## Reading"
NOTES = "speed_notes.csv"
Rows = list[Mapping[str, str]]


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes
    ----------
    title : str
    file : str
        CSV file that it is made of.
    command : str
        What makes that file.
    text : callable
        Rows, and where a figure may be written, to Markdown.
    """

    title: str
    file: str
    command: str
    text: Callable[[Rows, Path], str]

    def write(self, data: Path, out: Path) -> str:
        """The section's Markdown."""
        rows = read(data / self.file)
        if not rows:
            body = f"Not measured yet: `{self.file}` is made by\n\n    {self.command}"
            return f"## {self.title}\n\n{body}"
        source = f"    {self.command}\n\n{machine(rows)}All rows: [{self.file}]({self.file})."
        notes = [f"\n\n{row['note']}" for row in read(data / NOTES) if row["file"] == self.file]
        return f"## {self.title}\n\n{self.text(rows, out)}\n\n{source}{''.join(notes)}"


def machine(rows: Rows) -> str:
    """One sentence on where and with what rows were measured."""
    names = {
        "card": "", "device": "", "torch": "PyTorch ", "triton": "Triton ",
        "fairchem": "fairchem-core ", "commit": "commit ", "date": "",
    }  # fmt: skip
    parts = []
    for column, prefix in names.items():
        values = list(dict.fromkeys(row[column] for row in rows if row.get(column)))
        if values:
            parts.append(prefix + " / ".join(values))
    return ", ".join(parts) + ". " if parts else ""


def drawn(figure: Callable[..., None], rows: Rows, path: Path, alternative: str) -> str:
    """Draw a figure and return the Markdown that shows it; nothing without matplotlib."""
    try:
        figure(rows, path)
    except ModuleNotFoundError as error:
        print(f"no figure {path.name}: {error}", file=sys.stderr)
        return ""
    return f"\n\n![{alternative}]({path.name})"


def goals_text(rows: Rows, out: Path) -> str:
    """Goals, then all rows, then the block."""
    settings = sorted({row["settings"] for row in rows if row.get("settings")})
    note = f" Settings of the EST model other than its config's: `{'; '.join(settings)}`."
    return f"""{goals_table(rows)}

Rows are `model.mode.precision.structures`; of rows with one name goals take the last. *est*: the
45M EST model (`est_s2ef_8layer`), *eqv2*: this package's EquiformerV2-31M, *stock*: fairchem-core
1.10.0's EquiformerV2-31M as its users run it, in a process of its own on the same batches. Random
weights; random slabs of OC20's sizes, on the device beforehand; a step includes the search for
neighbours, a training step also the loss and AdamW (in one kernel, as in the configs; stock's as in
its trainer). Graphs: training steps, or the block, replayed as CUDA graphs; predictions for one
system always are. Spread: distance of the quartiles of the steps' rates over their median. Peak:
all that PyTorch and its CUDA graphs hold in the timed steps.

Loading is a section of its own.{note if settings else ""}

{figures_table(rows)}

The EST block alone on one batch's atoms: forward and backward as one CUDA graph, as in captured
training (`block_captured`), with kernels started one by one (`block`), and forward. Arithmetic: its
matrix products at the rate of a large one on this card. Memory: input, output, weights and their
gradients, once each, at the rate of a large copy. Staged: operands and results of every product as
well, which no kernel needs that keeps them to itself.

{block_table(rows)}"""


def history_text(rows: Rows, out: Path) -> str:
    """What each step gained."""
    lines, before = [], {}
    for row in rows:
        key = (row["mode"], row["precision"], row["batch"])
        # Maker and model: the rest of a card's name is written now so, now so.
        same = (*key, *row["card"].split()[:2])
        rate, gain = number(row, "atoms_s"), "-"
        if rate is not None:
            gain = f"{rate / before[same]:.2f} x" if same in before else "-"
            before[same] = rate
        what = ", ".join(part for part in key if part)
        words = [row["prediction"] or "-", row["outcome"] or "-"]
        memory = shown(number(row, "peak_gib"), ".1f")
        lines.append([row["step"], what, *words, shown(rate, ",.0f"), gain, memory])
    header = ["step", "measured", "prediction", "outcome", "atoms/s", "gain", "peak, GiB"]
    return (
        "Each row adds to those before; the gain is over the last row of its kind and card.\n\n"
        + markdown(header, lines)
    )


def kernels_text(rows: Rows, out: Path) -> str:
    """Parts of a step, and the roofline."""
    first = rows[0]
    figure = drawn(roofline, rows, out / "speed_roofline.png", "Roofline of a training step")
    walls = {row["step"]: float(row["wall_ms"]) for row in rows}
    times = ", ".join(f"{name} {ms:.1f} ms" for name, ms in walls.items())
    size = f"{first['batch']} structures, {first['atoms']} atoms, {first['edges']} edges"
    return f"""One step under PyTorch's profiler, {first["precision"]}, {size}. Without the profiler
a step takes: {times}. Operations are counted where the kernel's operator is a known product, bytes
are those of operands and results, once each. The roof is what a large product and a large copy
reach on this card.

{parts_table(rows)}{figure}"""


def scaling_text(rows: Rows, out: Path) -> str:
    """Exponents and figure."""
    fits, figure = exponents(rows), ""
    if fits:
        path = out / "speed_scaling.png"
        figure = drawn(plot_scaling, rows, path, "Time and memory of training")
    failed: dict[str, list[str]] = {}
    for row in rows:
        if row["error"]:
            failed.setdefault(row["error"], []).append(f"{row['sweep']} {row['x']}")
    reasons = [f"{', '.join(which)} ({error})" for error, which in failed.items()]
    timed = any(row["ms"] for row in rows)
    untimed = "" if timed else " Times were not kept."
    note = f" Failed, and left out: {'; '.join(reasons)}." if failed else ""
    captured = any(row.get("graphs") == "True" for row in rows)
    how = ", timed steps are replayed as CUDA graphs" if captured else ""
    return f"""Exponents k of `a x^k`, least squares of logarithms, with their standard errors. One
setting is varied, the others are the config's, {rows[0]["precision"]}; layers are not
compiled{how}. Memory is what a step needs above weights, gradients
and the optimiser's state.{untimed}{note}

{exponents_table(fits)}{figure}"""


def loading_text(rows: Rows, out: Path) -> str:
    """Frames a second by workers."""
    lines = [
        [row["workers"], "and graphs" if row["graphs"] == "True" else "reading alone",
         f"{float(row['frames_s']):,.0f}", f"{float(row['atoms_s']):,.0f}"]
        for row in rows
    ]  # fmt: skip
    table = markdown(["processes", "work", "frames/s", "atoms/s"], lines)
    where = f"batches of {rows[0]['batch']}, {rows[0]['cores']} cores"
    return f"""LMDB read in random order, {where}. Loading keeps up where its atoms/s are more than
those of training.

{table}"""


def precision_text(rows: Rows, out: Path) -> str:
    """Errors against float32."""
    lines = []
    for row in rows:
        kernels = "yes" if row["fused_kernels"] == "True" else "no"
        figures = [f"{100 * float(row[name]):.3f}" for name in ("energy", "forces", "gradient")]
        lines.append([row["precision"], kernels, *figures])
    header = ["precision", "fused kernels", "energy, %", "forces, %", "gradient of the loss, %"]
    return (
        "Norm of the difference to float32 over the norm, random weights, same batch. Goal for "
        "bf16: forces below 2%, energy below 0.5%.\n\n" + markdown(header, lines)
    )


def curves_text(rows: Rows, out: Path) -> str:
    """Held-out table and losses."""
    figure = drawn(plot_curves, rows, out / "speed_curves.png", "Training losses by precision")
    return (
        "Same data, order and start; two seeds of one precision show how large chance is.\n\n"
        + curves_table(rows)
        + figure
    )


def ddp_text(rows: Rows, out: Path) -> str:
    """Rates by number of GPUs."""
    alone = next((float(row["atoms_s"]) for row in rows if row["gpus"] == "1"), None)
    lines = []
    for row in rows:
        rate, gpus = float(row["atoms_s"]), int(row["gpus"])
        gain = rate / alone if alone else None
        gains = [shown(gain, ".2f"), shown(100 * gain / gpus if alone else None, ".0f")]
        how = ["yes" if row.get(key) == "True" else "no" for key in ("compiled", "graphs")]
        figures = [shown(number(row, key), ".1f") for key in ("ms", "spread_percent", "peak_gib")]
        lines.append([str(gpus), row["precision"], row["batch"], *how, *figures, f"{rate:,.0f}",
                      *gains])  # fmt: skip
    header = ["GPUs", "precision", "structures a GPU", "compiled", "graphs", "ms", "spread, %"]
    header += ["peak of one, GiB", "atoms/s", "times one GPU", "% of ideal"]
    return (
        "Training through DistributedDataParallel, every GPU with batches of its own; rates are of "
        "all together.\n\n" + markdown(header, lines)
    )


SECTIONS = (
    Section(
        "Goals", "speed.csv",
        "python benchmarks/run.py --stock FOLDER --out docs/results", goals_text,
    ),
    Section(
        "What each step gained", "speed_history.csv",
        "python benchmarks/run.py --out runs/benchmarks", history_text,
    ),
    Section(
        "Where the time goes", "speed_kernels.csv",
        "python benchmarks/step_profile.py --out docs/results", kernels_text,
    ),
    Section(
        "Scaling", "speed_scaling.csv",
        "python benchmarks/scaling.py --out docs/results", scaling_text,
    ),
    Section(
        "Loading", "speed_loading.csv",
        "python benchmarks/loading.py --workers 1 2 4 --csv --out docs/results", loading_text,
    ),
    Section(
        "Precision", "speed_precision.csv",
        "python benchmarks/s2ef_precision.py --csv --out docs/results", precision_text,
    ),
    Section(
        "Training in bf16 and TF32", "speed_curves.csv",
        "python benchmarks/precision_curves.py --data FOLDER --out docs/results/speed_curves.csv",
        curves_text,
    ),
    Section(
        "Several GPUs", "speed_ddp.csv",
        "torchrun --standalone --nproc-per-node 2 benchmarks/ddp.py --out docs/results", ddp_text,
    ),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Write page and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parents[1] / "docs" / "results"
    parser.add_argument("--data", type=Path, default=default, help="folder of the CSV files")
    parser.add_argument("--out", type=Path, default=default, help="folder of page and figures")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    page = arguments.out / "speed.md"
    old = page.read_text() if page.is_file() else ""
    reading = [old[old.index(READING) :].rstrip()] if READING in old else []
    head = "# Speed and memory\n\nMade by `python benchmarks/page.py` from the CSV files beside it."
    body = [section.write(arguments.data, arguments.out) for section in SECTIONS]
    page.write_text("\n\n".join([head, *body, *reading]) + "\n")
    print(page)


if __name__ == "__main__":
    main()
