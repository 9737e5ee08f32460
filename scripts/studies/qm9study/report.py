"""Columns, figure and page of the study."""

from __future__ import annotations

from pathlib import Path

from csv_rows import read

from est_ocp.errors import ConfigError
from est_ocp.qm9_targets import TARGETS
from qm9study.training import LABELS, PAIRS

TRAININGS = (
    "target", "model", "seed", "test_mae", "val_mae", "unit", "parameters", "batch_size", "steps",
    "epochs", "train_seconds", "all_seconds", "molecules_per_second", "card", "torch",
)  # fmt: skip
#: Commands that trained, one a line.
COMMANDS = "commands.txt"
CURVE = ("target", "model", "seed", "seconds", "step", "val_mae")
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


def targets_of(rows: list[dict[str, str]]) -> list[str]:
    """Targets with a finished training, in QM9's order."""
    present = {row["target"] for row in rows}
    return [target for target in TARGETS if target in present]


def mean(rows: list[dict[str, str]], target: str, model: str, column: str) -> float | None:
    """Mean of a column over the seeds of one model and target."""
    values = [
        float(row[column]) for row in rows if (row["target"], row["model"]) == (target, model)
    ]
    return sum(values) / len(values) if values else None


def table(rows: list[dict[str, str]], target: str) -> str:
    """Markdown table of one target."""
    unit = TARGETS[target].table_unit
    lines = [
        f"| model | parameters | epochs | molecules/s | val MAE ({unit}) | test MAE ({unit}) |",
        "|---|---|---|---|---|---|",
    ]
    for model, label in LABELS.items():
        if mean(rows, target, model, "test_mae") is None:
            continue
        figures = {
            name: mean(rows, target, model, name) for name in TRAININGS[3:13] if name != "unit"
        }
        lines.append(
            f"| {label} | {figures['parameters'] / 1e6:.2f}M | {figures['epochs']:.1f} | "
            f"{figures['molecules_per_second']:.0f} | {figures['val_mae']:.4g} | "
            f"{figures['test_mae']:.4g} |"
        )
    for label, values in PUBLISHED.items():
        lines.append(f"| *published: {label}* | | | | | {values[target]:g} |")
    return "\n".join(lines)


def verdicts(rows: list[dict[str, str]]) -> list[str]:
    """One line for each host, EST variant and target: which is better, and by how much."""
    lines = []
    for host, variant in PAIRS.items():
        for target in targets_of(rows):
            own, est = (mean(rows, target, model, "test_mae") for model in (host, variant))
            if own is None or est is None:
                continue
            change = 100 * (est / own - 1)
            word = "lower" if change < 0 else "higher"
            lines.append(
                f"- {target}: with EST's update in {LABELS[host]} the error is {abs(change):.1f}% "
                f"{word} ({own:.4g} to {est:.4g} {TARGETS[target].table_unit})."
            )
    return lines


def draw(curves: list[dict[str, str]], path: Path) -> None:
    """Plot validation errors against seconds of training, one panel a target."""
    from est_ocp.evaluation.figures import pyplot

    plt = pyplot()
    targets = targets_of(curves)
    columns = min(3, len(targets))
    lines = -(-len(targets) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.6 * columns, 3.6 * lines), squeeze=False)
    for axis, target in zip(axes.flat, targets, strict=False):
        for model, label in LABELS.items():
            points = [row for row in curves if (row["target"], row["model"]) == (target, model)]
            for seed in sorted({row["seed"] for row in points}):
                of_seed = [row for row in points if row["seed"] == seed]
                axis.plot(
                    [float(row["seconds"]) for row in of_seed],
                    [float(row["val_mae"]) for row in of_seed],
                    marker=".",
                    color=f"C{list(LABELS).index(model)}",
                    linestyle="--" if model in PAIRS else "-",
                    label=label if seed == "0" else None,
                )
        axis.set(
            title=target,
            xlabel="seconds of training",
            ylabel=f"validation MAE ({TARGETS[target].table_unit})",
            yscale="log",
        )
    for axis in axes.flat[len(targets) :]:
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
    rows, curves = read(folder / "trainings.csv"), read(folder / "curves.csv")
    try:
        draw(curves, folder / "curves.png")
    except ConfigError as error:
        print(error)
    noted = folder / COMMANDS
    commands = noted.read_text().splitlines() if noted.is_file() else []
    cards = sorted({row["card"] for row in rows})
    seconds = "/".join(map(str, sorted({round(float(row["train_seconds"])) for row in rows})))
    epochs = [float(row["epochs"]) for row in rows]
    lines = [
        "# QM9: hosts, hosts with EST, and peers at equal time",
        "",
        f"Machine: {', '.join(cards)}. Each training took {seconds} s; "
        "evaluations and the first ten steps, in which layers are compiled, do not count; the "
        "learning rate followed the clock down to a hundredth. "
        f"That is {min(epochs):.1f} to {max(epochs):.1f} passes over the training set, where "
        "published results take 300 to 1,000: the errors here are those of the same minutes, not "
        "what the models reach. All models share data, split, head, optimiser settings, batch "
        "size and seed; hyper-parameters were not tuned for short trainings.",
        "",
        *[f"    {command}" for command in commands],
        "",
        "Errors are those of the averaged weights after the last step, means over seeds where "
        "there are several. Raw figures: `trainings.csv`, `curves.csv`.",
        "",
    ]
    if (folder / "curves.png").is_file():
        lines += ["![Validation error against time](curves.png)", ""]
    found = verdicts(rows)
    if found:
        lines += ["## EST's update against the host's own feed-forward", "", *found, ""]
    for target in targets_of(rows):
        lines += [f"## {target}", "", table(rows, target), ""]
    page = folder / "README.md"
    page.write_text("\n".join(lines))
    return page
