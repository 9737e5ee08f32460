"""The study's page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from csv_rows import read

from est_ocp.errors import ConfigError
from s2efpeers import report, tables
from s2efpeers.callbacks import KNOWN
from s2efpeers.figure import draw
from s2efpeers.models import LABELS, VARIANTS, label_of, model_overrides
from s2efpeers.plan import TUNING_SPLIT
from s2efpeers.training import ENERGY_COEFFICIENT

#: A section with this heading, written by hand, outlives a new page.
READING = "## Reading"
#: CSV files of the study; on the page's side their names begin with the page's.
FILES = ("trainings", "curves", "failures")
#: With these beside them the study can go on elsewhere.
STATE = ("settings", "origin")


def write_page(page: Path, out: Path) -> None:
    """Write page, figure and CSV files from the results in ``out``."""
    page.parent.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        source, target = out / f"{name}.csv", page.with_name(f"{page.stem}_{name}.csv")
        target.unlink(missing_ok=True)
        if source.is_file():
            shutil.copyfile(source, target)
    for name in STATE:
        shutil.copyfile(out / f"{name}.json", page.with_name(f"{page.stem}_{name}.json"))
    trainings, curves, failures = (read(out / f"{name}.csv") for name in FILES)
    trainings, curves = (report.newest(trainings, rows) for rows in (trainings, curves))
    origin = json.loads((out / "origin.json").read_text())
    settings = json.loads((out / "settings.json").read_text())
    figure = page.with_suffix(".png")
    try:
        draw(curves, figure)
    except ConfigError as error:
        print(f"no figure: {error}; --report draws it where matplotlib is installed")
    kept = kept_reading(page)
    lines = [
        *_head(settings, origin),
        *_method(settings, origin["data"]),
        *_command(origin, trainings),
        *_results(settings, origin["data"], trainings, curves, figure, page.stem),
        *_sweep(curves, failures),
        *_variants(trainings, curves),
        *_failures(failures),
    ]
    text = "\n".join(lines).rstrip() + "\n"
    page.write_text(text + (f"\n{kept}\n" if kept else ""))


def kept_reading(page: Path) -> str:
    """Return the hand-written last section of an earlier page."""
    text = page.read_text() if page.is_file() else ""
    return text[text.index(READING) :].rstrip() if READING in text else ""


def _head(settings: dict[str, Any], origin: dict[str, Any]) -> list[str]:
    return [
        "# S2EF beside its peers, at equal time",
        "",
        "## Question",
        "",
        "The paper's central claim: does EST's update in place of the host's own feed-forward "
        "block make a better model of energies and forces? And where do the full EST, with its own "
        "message block, and other models stand, when all have the same time on the same card?",
        "",
    ]


def _method(settings: dict[str, Any], data: dict[str, Any]) -> list[str]:
    frames = data["frames"]
    validation = ", ".join(f"{split} {frames[split]:,}" for split in report.VALIDATION)
    configs = "\n".join(
        f"- {label}: `{' '.join(model_overrides(name))}`" for name, label in LABELS.items()
    )
    return [
        "## Method",
        "",
        f"{frames['train']:,} frames of slabs with adsorbates, {data['atoms']:.1f} atoms on "
        f"average, train; four splits validate ({validation}). Labels: {data['source']}. They are "
        "of a universal potential, not DFT: the errors compare models with each other and not with "
        "figures of OC20.",
        "",
        "Every training runs in fairchem's trainer (`train_s2ef`) with the same loss (energy "
        f"{ENERGY_COEFFICIENT} x MAE / {data['energy_std']:.2f} eV, forces 100 x norm of the error "
        f"/ {data['forces_rms']:.2f} eV/Å), batches of {settings['batch_size']} in the same "
        "order, AdamW with a cosine that follows the clock, averaged weights (0.995), TF32, and "
        f"{settings['seconds']:g} s of training; evaluations and the first "
        f"{settings['untimed_steps']} steps do not count. Energies come from the same head; forces "
        "are direct, each model's own way; loaders search for the neighbours. Models are reduced "
        "to about 2.5M parameters, four layers, L = 3 where they have degrees, cutoff 6 Å and 20 "
        "neighbours; fairchem's two are not compiled, as EScAIP is meant to be:",
        "",
        configs,
        "",
        "The figures are those of the averaged weights at the end, means over seeds where there "
        "are several (± standard deviation). Of predicting the mean energy and no forces: "
        f"{1e3 * data['trivial']['energy_mae']:.0f} meV and "
        f"{1e3 * data['trivial']['forces_mae']:.0f} meV/Å. *EFwT*: frames with an energy error "
        "below 0.02 eV and no force component off by 0.03 eV/Å; *EFwT x 10*: both thresholds ten "
        "times as large.",
        "",
    ]


def _command(origin: dict[str, Any], trainings: report.Rows) -> list[str]:
    machine = ", ".join(f"{name} {value}" for name, value in origin["machine"].items())
    cards = ", ".join(sorted({row["card"] for row in trainings})) or "-"
    fast = ", ".join(
        f"{label_of(model)}: `{kinds}`"
        for model in LABELS
        if (kinds := " / ".join(sorted({r["fast"] for r in trainings if r["model"] == model})))
    )
    return [
        "## Command",
        "",
        *[f"    {command}" for command in origin["commands"]],
        "",
        f"One training a card at a time: {cards}. {machine}. Fast paths in use: {fast or '-'}.",
        "",
    ]


def _results(
    settings: dict[str, Any],
    data: dict[str, Any],
    trainings: report.Rows,
    curves: report.Rows,
    figure: Path,
    stem: str,
) -> list[str]:
    if not any(row["stage"] == "main" for row in curves):
        return ["## Result", "", "No training at full length has finished yet.", ""]
    steps = data["frames"]["train"] / settings["batch_size"]
    of_known = report.judged(report.final(curves, "main")) == KNOWN
    means = "Means over the four splits"
    if of_known:
        means += ", of frames whose elements all occur in training"
    lines = [
        "## Result",
        "",
        report.answer(curves),
        "",
        f"{means}; the best of each column in bold, which is no claim:",
        "",
        *tables.main_table(trainings, curves, steps),
        "",
        f"Differences, with a t-test at {100 * report.LEVEL:g}% on the pooled spread of seeds:",
        "",
        *report.reading(trainings, curves),
        "",
    ]
    if figure.is_file():
        lines += [f"![Errors against seconds of training]({figure.name})", ""]
    lines += [
        "By split:",
        "",
        *tables.split_table(curves),
        "",
        "The paper's figures and those that it compares with (theirs: OC20, 31M to 153M "
        "parameters, weeks of many cards), which cannot be compared with ours line by line:",
        "",
        *tables.published_table(),
        "",
        f"Every training: [{stem}_trainings.csv]({stem}_trainings.csv); every evaluation: "
        f"[{stem}_curves.csv]({stem}_curves.csv).",
        "",
    ]
    return lines


def _sweep(curves: report.Rows, failures: report.Rows) -> list[str]:
    if not any(row["stage"] == "sweep" for row in [*curves, *failures]):
        return []
    return [
        "## Learning rates",
        "",
        "Short trainings of every model at each rate; geometric mean of energy MAE (eV) and force "
        f"MAE (eV/Å) on {TUNING_SPLIT}, seed 0. The best one is used above. Short trainings "
        "favour high rates.",
        "",
        *tables.sweep_table(curves, failures),
        "",
        *tables.sweep_remarks(curves),
        "",
    ]


def _variants(trainings: report.Rows, curves: report.Rows) -> list[str]:
    if not any(row["stage"] == "variant" for row in curves):
        return []
    configs = [
        f"- {label_of(name)}: `{' '.join(model_overrides(name)[1:])}`"
        for name in VARIANTS
        if any(row["model"] == name for row in curves)
    ]
    return [
        "## Variants of the EST update",
        "",
        "At the hybrid's learning rate and time, one seed each; nothing was tuned for them. "
        "(noise): inside what one training against those of the hybrid's seeds can tell.",
        "",
        *tables.variant_table(trainings, curves),
        "",
        *configs,
        "",
    ]


def _failures(failures: report.Rows) -> list[str]:
    if not failures:
        return []
    return [
        "## Failed",
        "",
        "Left out above. A fast path that failed was tried again without it.",
        "",
        *tables.failure_list(failures),
        "",
    ]
