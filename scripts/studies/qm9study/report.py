"""Figure and page of the study."""

from __future__ import annotations

import statistics
from pathlib import Path

from est_ocp.errors import ConfigError
from est_ocp.qm9_targets import TARGETS
from qm9study.models import HOSTS, LABELS
from qm9study.reading import extrapolations, verdicts
from qm9study.tables import Row, Tables, main_seconds, mean, targets_of, values

#: Commands that trained, one a line.
COMMANDS = "commands.txt"
#: Heading from which on a page is kept as it is.
REMARKS = "\n## Remarks\n"
#: Test errors after the published schedules (300 to 1,000 epochs), in the tables' units: from the
#: papers of Equiformer (arXiv 2206.11990) and of EST (arXiv 2505.23086, tables 3 and 11).
PUBLISHED = {
    "Equiformer, 300 epochs": {
        "alpha": 0.046, "gap": 30, "homo": 15, "lumo": 14, "mu": 0.011, "Cv": 0.023, "G": 7.63,
        "H": 6.63, "r2": 0.251, "U": 6.74, "U0": 6.59, "zpve": 1.26,
    },
    "EST + GA (paper)": {
        "alpha": 0.042, "gap": 28, "homo": 13, "lumo": 12, "mu": 0.011, "Cv": 0.022, "G": 7.03,
        "H": 5.94, "r2": 0.298, "U": 5.92, "U0": 5.64, "zpve": 1.31,
    },
    "GotenNet, 4 layers": {
        "alpha": 0.033, "gap": 21.2, "homo": 16.9, "lumo": 13.9, "mu": 0.0075, "Cv": 0.020,
        "G": 5.50, "H": 3.70, "r2": 0.029, "U": 3.67, "U0": 3.71, "zpve": 1.09,
    },
}  # fmt: skip


def error_text(found: list[float]) -> str:
    """A mean, with its standard deviation where there are several."""
    text = f"{statistics.fmean(found):.4g}"
    return text + (f" ± {statistics.stdev(found):.2g}" if len(found) > 1 else "")


def table(rows: list[Row], target: str) -> str:
    """Markdown table of one target, of trainings on it alone."""
    unit = TARGETS[target].table_unit
    lines = [
        f"| model | parameters | lr | epochs | molecules/s | GiB | val MAE ({unit}) | "
        f"test MAE ({unit}) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, label in LABELS.items():
        tests = values(rows, target, model, "test_mae")
        if not tests:
            continue
        names = ("parameters", "lr", "epochs", "molecules_per_second", "peak_gib", "val_mae")
        parameters, lr, epochs, rate, memory, val = (mean(rows, target, model, n) for n in names)
        lines.append(
            f"| {label} | {parameters / 1e6:.2f}M | {lr:.2g} | {epochs:.1f} | {rate:.0f} | "
            f"{memory:.1f} | {val:.4g} | {error_text(tests)} |"
        )
    for label, published in PUBLISHED.items():
        lines.append(f"| *theirs: {label}* | | | | | | | {published[target]:g} |")
    return "\n".join(lines)


def joint_table(rows: list[Row]) -> str:
    """Markdown table of models that were trained on all targets at once."""
    targets = targets_of(rows)
    heads = [f"{target} ({TARGETS[target].table_unit})" for target in targets]
    lines = [
        f"| model | parameters | lr | epochs | molecules/s | {' | '.join(heads)} |",
        "|---|---|---|---|---|" + "---|" * len(targets),
    ]
    for model, label in LABELS.items():
        cells = [values(rows, target, model, "test_mae") for target in targets]
        if not all(cells):
            continue
        names = ("parameters", "lr", "epochs", "molecules_per_second")
        parameters, lr, epochs, rate = (mean(rows, targets[0], model, n) for n in names)
        lines.append(
            f"| {label} | {parameters / 1e6:.2f}M | {lr:.2g} | {epochs:.1f} | {rate:.0f} | "
            f"{' | '.join(map(error_text, cells))} |"
        )
    for label, published in PUBLISHED.items():
        cells = [f"{published[target]:g}" for target in targets]
        lines.append(f"| *theirs, one model a target: {label}* | | | | | {' | '.join(cells)} |")
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


def draw(curves: list[Row], path: Path) -> None:
    """Plot validation errors against seconds of training, one panel a target."""
    from est_ocp.evaluation.figures import pyplot

    plt = pyplot()
    names = [t for t in (*TARGETS, "all") if t in {row["trained_on"] for row in curves}]
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.6 * columns, 3.6 * lines), squeeze=False)
    for axis, target in zip(axes.flat, names, strict=False):
        for model, label in LABELS.items():
            points = [r for r in curves if (r["trained_on"], r["model"]) == (target, model)]
            for number, run in enumerate(sorted({(r["seconds"], r["seed"]) for r in points})):
                of_run = [r for r in points if (r["seconds"], r["seed"]) == run]
                axis.plot(
                    [float(row["trained"]) for row in of_run],
                    [float(row["val_mae"]) for row in of_run],
                    marker=".",
                    color=f"C{list(LABELS).index(model)}",
                    linestyle="-" if model in HOSTS else "--",
                    label=None if number else label,
                )
        unit = "spreads, mean of all" if target == "all" else TARGETS[target].table_unit
        axis.set(
            title=target,
            xlabel="seconds of training",
            ylabel=f"validation MAE ({unit})",
            yscale="log",
        )
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


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
    seconds = main_seconds(rows)
    compared = [row for row in rows if row["seconds"] == seconds]
    alone = [row for row in compared if row["trained_on"] != "all"]
    joint = [row for row in compared if row["trained_on"] == "all"]
    lines = [*_introduction(folder, compared, seconds), *_method(compared, bool(sweep))]
    if (folder / "curves.png").is_file():
        lines += [
            "Solid: with EST's update; dashed: hosts and peers.", "",
            "![Validation error against time](curves.png)", "",
        ]  # fmt: skip
    found = [*verdicts(alone), *verdicts(joint)]
    if found:
        lines += ["## EST's update against the host's own feed-forward", "", *found, ""]
    for target in targets_of(alone):
        lines += [f"## {target}", "", table(alone, target), ""]
    if joint:
        lines += ["## One model for all twelve targets", "", joint_table(joint), ""]
    lines += _longer(rows, seconds)
    if sweep:
        lines += ["## Learning rates", "", *_sweep_words(sweep), sweep_table(sweep), ""]
    page = folder / "README.md"
    page.write_text("\n".join([*lines, *_remarks(page)]))
    return page


def _remarks(page: Path) -> list[str]:
    """What was written by hand at the end of the last page."""
    if not page.is_file():
        return []
    _, heading, text = page.read_text().partition(REMARKS)
    return [heading.strip(), *text.splitlines(), ""] if heading else []


def _introduction(folder: Path, rows: list[Row], seconds: str) -> list[str]:
    noted = folder / COMMANDS
    commands = noted.read_text().splitlines() if noted.is_file() else []
    cards = ", ".join(sorted({f"{r['card']} (PyTorch {r['torch']})" for r in rows}))
    return [
        "# QM9: hosts, hosts with EST, and peers at equal time",
        "",
        "Question: after the same minutes on the same GPU, is a model better with EST's update "
        "block in place of its own feed-forward, and how do both stand among their peers?",
        "",
        f"Machine: {cards}. {float(seconds):g} s of training each.",
        "",
        *[f"    {command}" for command in commands],
        "",
    ]


def _method(rows: list[Row], swept: bool) -> list[str]:
    epochs = [float(row["epochs"]) for row in rows]
    shared = sorted({int(row["per_gpu"]) for row in rows})
    speeds = "; ".join(sorted({row["speed"] for row in rows}))
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
        f"{card} Arithmetic: {speeds}. Host and host + EST differ in the update block alone; "
        "'wider feed-forward' is the host with as many parameters as with EST.",
        "",
        f"These are {min(epochs):.1f} to {max(epochs):.1f} passes over the training set, where the "
        "published results (rows 'theirs', from the papers) take 300 to 1,000: the errors here are "
        "those of the same minutes and not what the models reach.",
        "",
        "Errors are those of the averaged weights after the last step on all of the test set; ± is "
        "the standard deviation over seeds. Raw figures: `trainings.csv`, `curves.csv`.",
        "",
    ]


def _longer(rows: list[Row], seconds: str) -> list[str]:
    found = []
    for kind in (False, True):
        found += extrapolations([r for r in rows if (r["trained_on"] == "all") == kind])
    if not found:
        return [
            f"No training was longer than {float(seconds):g} s. Within one, the falling learning "
            "rate shapes the curve; where a longer schedule would end cannot be read off it.",
            "",
        ]
    return ["## Longer trainings", "", *found, ""]


def _sweep_words(sweep: list[Row]) -> list[str]:
    seconds = "/".join(sorted({f"{float(row['seconds']):g}" for row in sweep}))
    targets = ", ".join(sorted({row["trained_on"] for row in sweep}))
    return [
        f"Validation MAE after {seconds} s on {targets}, by peak learning rate; the best one "
        "(bold) is used above. Raw figures: `lr_sweep.csv`.",
        "",
    ]
