"""Page of the study."""

from __future__ import annotations

import statistics
from pathlib import Path

from est_ocp.errors import ConfigError
from est_ocp.qm9_targets import TARGETS
from qm9study.figure import draw
from qm9study.models import HOSTS, LABELS
from qm9study.pairs import equal_steps, pair_tables
from qm9study.reading import length_table
from qm9study.tables import Row, Tables, error_text, mean, targets_of, values

#: Commands that trained, one a line.
COMMANDS = "commands.txt"
#: Headings written by hand: from the first of them on a page is kept as it is.
BY_HAND = ("\n## Reading\n", "\n## Remarks\n")
#: Model to the host whose speed its own is compared with.
HOST_OF = {model: host for est, (host, wide) in HOSTS.items() for model in (est, wide)}
#: Test errors after the published schedules (300 to 1,000 epochs), in the tables' units: from the
#: papers of Equiformer (arXiv 2206.11990) and of EST (arXiv 2505.23086, tables 3 and 11). The gap
#: of EST + GATA is 31.2 in that table, beside 21.2 of GotenNet.
PUBLISHED = {
    "Equiformer, 300 epochs": {
        "alpha": 0.046, "gap": 30, "homo": 15, "lumo": 14, "mu": 0.011, "Cv": 0.023, "G": 7.63,
        "H": 6.63, "r2": 0.251, "U": 6.74, "U0": 6.59, "zpve": 1.26,
    },
    "EST (Table 3)": {
        "alpha": 0.042, "gap": 28, "homo": 13, "lumo": 12, "mu": 0.011, "Cv": 0.022, "G": 7.03,
        "H": 5.94, "r2": 0.298, "U": 5.92, "U0": 5.64, "zpve": 1.31,
    },
    "EST + GA (Table 3)": {
        "alpha": 0.041, "gap": 29, "homo": 14, "lumo": 13, "mu": 0.011, "Cv": 0.021, "G": 7.18,
        "H": 6.17, "r2": 0.227, "U": 6.35, "U0": 6.32, "zpve": 1.27,
    },
    "GotenNet, 4 layers (Table 11)": {
        "alpha": 0.033, "gap": 21.2, "homo": 16.9, "lumo": 13.9, "mu": 0.0075, "Cv": 0.020,
        "G": 5.50, "H": 3.70, "r2": 0.029, "U": 3.67, "U0": 3.71, "zpve": 1.09,
    },
    "EST + GATA, 4 layers (Table 11)": {
        "alpha": 0.030, "gap": 31.2, "homo": 16.7, "lumo": 13.3, "mu": 0.0070, "Cv": 0.019,
        "G": 5.40, "H": 3.71, "r2": 0.029, "U": 3.70, "U0": 3.70, "zpve": 1.19,
    },
}  # fmt: skip


def speed_table(rows: list[Row]) -> str:
    """Markdown table of what the models cost; means over trainings.

    Parameters
    ----------
    rows : list of dict
        Trainings of one length, each on one target or all on all.
    """
    lines = [
        "| model | parameters | molecules/s | of its host's | epochs a minute | steps | epochs | "
        "peak GiB | arithmetic |",
        "|---" * 9 + "|",
    ]
    names = ("parameters", "molecules_per_second", "steps", "epochs", "peak_gib", "batch_size")
    costs = {
        model: [statistics.fmean(float(row[name]) for row in found) for name in names]
        for model in LABELS
        if (found := [row for row in rows if row["model"] == model])
    }
    for model, (parameters, rate, steps, epochs, memory, batch) in costs.items():
        host = costs.get(HOST_OF.get(model))
        speeds = sorted({row["speed"] for row in rows if row["model"] == model})
        lines.append(
            f"| {LABELS[model]} | {parameters / 1e6:.2f}M | {rate:.0f} | "
            f"{f'{rate / host[1]:.2f}' if host else ''} | "
            f"{60 * rate * epochs / (steps * batch):.2f} | {steps:.0f} | {epochs:.1f} | "
            f"{memory:.1f} | {'; '.join(speeds)} |"
        )
    return "\n".join(lines)


def table(rows: list[Row], target: str) -> str:
    """Markdown table of one target, of trainings on it alone."""
    unit = TARGETS[target].table_unit
    lines = [f"| model | lr | val MAE ({unit}) | test MAE ({unit}) |", "|---|---|---|---|"]
    for model, label in LABELS.items():
        tests = values(rows, target, model, "test_mae")
        if not tests:
            continue
        lr, val = (mean(rows, target, model, name) for name in ("lr", "val_mae"))
        lines.append(f"| {label} | {lr:.2g} | {val:.4g} | {error_text(tests)} |")
    for label, published in PUBLISHED.items():
        lines.append(f"| *theirs: {label}* | | | {published[target]:g} |")
    return "\n".join(lines)


def joint_table(rows: list[Row]) -> str:
    """Markdown table of models that were trained on all targets at once."""
    targets = targets_of(rows)
    heads = [f"{target} ({TARGETS[target].table_unit})" for target in targets]
    lines = [f"| model | lr | {' | '.join(heads)} |", "|---|---|" + "---|" * len(targets)]
    for model, label in LABELS.items():
        cells = [values(rows, target, model, "test_mae") for target in targets]
        if not all(cells):
            continue
        lr = mean(rows, targets[0], model, "lr")
        lines.append(f"| {label} | {lr:.2g} | {' | '.join(map(error_text, cells))} |")
    for label, published in PUBLISHED.items():
        cells = [f"{published[target]:g}" for target in targets]
        lines.append(f"| *theirs, one model a target: {label}* | | {' | '.join(cells)} |")
    return "\n".join(lines)


def sweep_table(sweep: list[Row]) -> str:
    """Markdown table of validation errors by learning rate."""
    rates = sorted({float(row["lr"]) for row in sweep})
    lines = [
        f"| model | {' | '.join(f'{rate:g}' for rate in rates)} |",
        "|---|" + "---|" * len(rates),
    ]
    for model, label in LABELS.items():
        found = {float(r["lr"]): float(r["val_mae"]) for r in sweep if r["model"] == model}
        if found:
            best = min(found.values())
            cells = [
                "" if rate not in found
                else f"**{found[rate]:.4g}**" if found[rate] == best
                else f"{found[rate]:.4g}"
                for rate in rates
            ]  # fmt: skip
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def note_command(folder: Path, command: str) -> None:
    """Keep a command that trains, for the page, which may be written later."""
    path = folder / COMMANDS
    folder.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.is_file() else []
    if command not in lines:
        path.write_text("\n".join([*lines, command]) + "\n")


def write_page(folder: Path) -> Path:
    """Write figure and Markdown page from the CSV files of a folder; return the page.

    Without matplotlib the page comes without figure.
    """
    tables = Tables(folder)
    rows, sweep = tables.trainings, tables.sweep
    try:
        draw(tables.curves, folder / "curves.png")
    except ConfigError as error:
        print(error)
    lines = [*_introduction(folder, rows), *_method(rows, bool(sweep))]
    if (folder / "curves.png").is_file():
        lines += [
            "Solid: with EST; dashed: hosts and peers; dotted: hosts with a wider "
            "feed-forward. Panels of one target have the same scale.", "",
            "![Validation error against time](curves.png)", "",
        ]  # fmt: skip
    for seconds in lengths(rows):
        for joint in (False, True):
            lines += _section(tables, seconds, joint)
    lines += _longer(rows)
    if sweep:
        lines += ["## Learning rates", "", *_sweep_words(sweep), sweep_table(sweep), ""]
    page = folder / "README.md"
    page.write_text("\n".join([*lines, *_by_hand(page)]))
    return page


def lengths(rows: list[Row]) -> list[str]:
    """Seconds of trainings, the longest last."""
    return sorted({row["seconds"] for row in rows}, key=float)


def _section(tables: Tables, seconds: str, joint: bool) -> list[str]:
    """Everything about trainings of one length, on one target each or on all at once."""
    rows, curves = (
        [r for r in of if r["seconds"] == seconds and (r["trained_on"] == "all") == joint]
        for of in (tables.trainings, tables.curves)
    )
    if not rows:
        return []
    what = "one model for all twelve targets" if joint else "one model a target"
    length = f"{float(seconds):g} s"
    lines = [f"## {length}, {what}", "", f"### Speed, {length}", "", speed_table(rows), ""]
    pairs, steps = pair_tables(rows), equal_steps(curves)
    if pairs:
        lines += [f"### EST's update against the host's own feed-forward, {length}", "", *pairs]
    if steps:
        lines += [f"### The same at equal steps, trainings of {length}", "", *steps]
    if joint:
        return [*lines, f"### Test MAE, {length}", "", joint_table(rows), ""]
    for target in targets_of(rows):
        lines += [f"### {target}, {length}", "", table(rows, target), ""]
    return lines


def _by_hand(page: Path) -> list[str]:
    """What was written by hand at the end of the last page."""
    text = page.read_text() if page.is_file() else ""
    starts = [text.index(heading) for heading in BY_HAND if heading in text]
    return [*text[min(starts) + 1 :].splitlines(), ""] if starts else []


def _introduction(folder: Path, rows: list[Row]) -> list[str]:
    noted = folder / COMMANDS
    commands = noted.read_text().splitlines() if noted.is_file() else []
    seconds = " or ".join(f"{float(length):g}" for length in lengths(rows))
    cards = ", ".join(sorted({f"{r['card']} (PyTorch {r['torch']})" for r in rows}))
    return [
        "# QM9: hosts, hosts with EST, and peers at equal time",
        "",
        "Question: after the same minutes on the same GPU, is a model better with EST's update "
        "block in place of its own feed-forward, and how do both stand among their peers?",
        "",
        f"Machine: {cards}. {seconds} s of training each.",
        "",
        *[f"    {command}" for command in commands],
        "",
    ]


def _method(rows: list[Row], swept: bool) -> list[str]:
    epochs = [float(row["epochs"]) for row in rows]
    shared = sorted({int(row["per_gpu"]) for row in rows})
    rates = (
        "the peak learning rate is each model's best of a sweep (below)"
        if swept
        else "all take the same peak learning rate, which was not tuned"
    )
    card = (
        "Each had its GPU for itself."
        if shared == [1]
        else f"{' or '.join(map(str, shared))} trainings at once shared a GPU, so that seconds and "
        "molecules/s are those of a part of the card."
    )
    return [
        "Method: all models share data, split, readouts, batch size, optimiser, schedule and "
        f"seeds; {rates}. The learning rate follows the clock down to a hundredth. Evaluations and "
        "the first steps, in which layers are compiled and CUDA graphs captured, do not count. "
        f"{card} Host and host + EST differ in the update block alone; "
        "'wider feed-forward' is the host with as many parameters as with EST.",
        "",
        f"These are {min(epochs):.1f} to {max(epochs):.1f} passes over the training set, where the "
        "published results (rows 'theirs', as printed in the papers; tables: arXiv 2505.23086) "
        "take 300 to 1,000: the errors here are those of the same minutes and not what the models "
        "reach.",
        "",
        "Errors are those of the averaged weights after the last step on all of the test set; ± is "
        "the standard deviation over seeds. Raw figures: `trainings.csv`, `curves.csv`.",
        "",
    ]


def _longer(rows: list[Row]) -> list[str]:
    kinds = ([r for r in rows if (r["trained_on"] == "all") == kind] for kind in (False, True))
    found = [line for part in kinds if (lines := length_table(part)) for line in (*lines, "")]
    if not found:
        return [
            "No model was trained for more than one length. Within one, the falling learning rate "
            "shapes the curve; where a longer schedule would end cannot be read off it.",
            "",
        ]
    return [
        "## Longer trainings",
        "",
        "Test errors after the shortest and the longest training of a model (epochs in brackets), "
        "each with a whole schedule of its own, and the exponent k of error ~ epochs^k between "
        "them. Two lengths cannot show that a power holds, nor where it ends.",
        "",
        *found,
    ]


def _sweep_words(sweep: list[Row]) -> list[str]:
    seconds = "/".join(sorted({f"{float(row['seconds']):g}" for row in sweep}))
    targets = ", ".join(sorted({row["trained_on"] for row in sweep}))
    return [
        f"Validation MAE after {seconds} s on {targets}, by peak learning rate; the best one "
        "(bold) is used above. Raw figures: `lr_sweep.csv`.",
        "",
    ]
