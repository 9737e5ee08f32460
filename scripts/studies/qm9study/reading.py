"""What trainings of several lengths say about longer ones."""

from __future__ import annotations

import math

from est_ocp.qm9_targets import TARGETS
from qm9study.models import LABELS
from qm9study.tables import Row, mean, targets_of


def extrapolations(rows: list[Row]) -> list[str]:
    """What longer trainings of the same model say about still longer ones.

    Only whole schedules are compared, whose rate has come down: the course within one says little.
    """
    lines = []
    for target in targets_of(rows):
        for model, label in LABELS.items():
            found = [r for r in rows if (r["target"], r["model"]) == (target, model)]
            lengths = sorted({r["seconds"] for r in found}, key=float)
            if len(lengths) < 2:
                continue
            parts = [[r for r in found if r["seconds"] == length] for length in lengths]
            short, long = ((p, mean(p, target, model, "test_mae")) for p in (parts[0], parts[-1]))
            epochs = [mean(p, target, model, "epochs") for p, _ in (short, long)]
            exponent = math.log(short[1] / long[1]) / math.log(epochs[1] / epochs[0])
            unit = TARGETS[target].table_unit
            text = (
                f"- {label}, {target}: {short[1]:.4g} {unit} after {epochs[0]:.3g} epochs, "
                f"{long[1]:.4g} after {epochs[1]:.3g}: as epochs to the power {-exponent:.2f}."
            )
            if exponent > 0:
                guess = long[1] * (300 / epochs[1]) ** -exponent
                text += (
                    f" Were that to hold, which two lengths cannot show, 300 epochs would give "
                    f"{guess:.3g} {unit}."
                )
            lines.append(text)
    return lines
