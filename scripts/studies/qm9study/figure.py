"""Figure of the study: validation errors against seconds of training."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from est_ocp.qm9_targets import TARGETS
from qm9study.models import HOSTS, LABELS
from qm9study.tables import Row

#: Panels side by side.
COLUMNS = 3
#: A host and its variants share a colour.
COLOURS = {
    model: f"C{number}"
    for number, family in enumerate(
        [*((est, *hosts) for est, hosts in HOSTS.items()),
         *((model,) for model in ("est", "escn_md", "schnet", "debug"))]
    )
    for model in family
}  # fmt: skip


def style(model: str) -> str:
    """Line of a model: solid with EST, dotted for wide hosts, else dashed."""
    if model in (*HOSTS, "est", "debug"):
        return "-"
    return ":" if model in {wide for _, wide in HOSTS.values()} else "--"


def panels(curves: list[Row]) -> list[tuple[str, str]]:
    """Targets and seconds that each have a panel, in order."""
    found = {(row["trained_on"], row["seconds"]) for row in curves}
    order = [*TARGETS, "all"]
    return sorted(found, key=lambda panel: (order.index(panel[0]), float(panel[1])))


def draw(curves: list[Row], path: Path) -> None:
    """Plot the errors, one panel a target and length; panels of a target have the same scale.

    Raises
    ------
    ConfigError
        Without matplotlib.
    """
    from est_ocp.evaluation.figures import pyplot

    plt = pyplot()
    from matplotlib.ticker import LogLocator

    names = panels(curves)
    columns = min(COLUMNS, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(4.6 * columns, 3.6 * lines + 1),
        squeeze=False,
        layout="constrained",
    )
    handles, by_target = {}, defaultdict(list)
    for axis, (target, seconds) in zip(axes.flat, names, strict=False):
        rows = [r for r in curves if (r["trained_on"], r["seconds"]) == (target, seconds)]
        for model, label in LABELS.items():
            points = [row for row in rows if row["model"] == model]
            for seed in sorted({row["seed"] for row in points}):
                of_run = [row for row in points if row["seed"] == seed]
                (handles[label],) = axis.plot(
                    [float(row["trained"]) for row in of_run],
                    [float(row["val_mae"]) for row in of_run],
                    marker=".",
                    color=COLOURS[model],
                    linestyle=style(model),
                )
        unit = "spreads, mean of all" if target == "all" else TARGETS[target].table_unit
        axis.set(
            title=f"{target}, {float(seconds):g} s",
            xlabel="seconds of training",
            ylabel=f"validation MAE ({unit})",
            yscale="log",
        )
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        by_target[target].append(axis)
    for of_target in by_target.values():
        limits = [axis.get_ylim() for axis in of_target]
        for axis in of_target:
            axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    shown = [label for label in LABELS.values() if label in handles]
    figure.legend(
        [handles[label] for label in shown],
        shown,
        loc="outside lower center",
        ncols=min(2, columns),
        fontsize=8,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
