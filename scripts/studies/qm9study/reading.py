"""What trainings of several lengths say about longer ones."""

from __future__ import annotations

import math

from est_ocp.qm9_targets import TARGETS
from qm9study.models import LABELS
from qm9study.tables import Row, mean, targets_of


def growth(rows: list[Row], target: str, model: str) -> tuple[list[float], list[float]] | None:
    """Epochs and test errors of a model's shortest and longest trainings, if there are two lengths.

    Only whole schedules are compared, whose rate has come down: the course within one says little.
    """
    found = [r for r in rows if (r["target"], r["model"]) == (target, model)]
    lengths = sorted({r["seconds"] for r in found}, key=float)
    if len(lengths) < 2:
        return None
    parts = [[r for r in found if r["seconds"] == lengths[end]] for end in (0, -1)]
    epochs, errors = (
        [mean(part, target, model, name) for part in parts] for name in ("epochs", "test_mae")
    )
    return epochs, errors


def length_table(rows: list[Row]) -> list[str]:
    """Table of the errors of several lengths: one line a target, exponents of error in epochs."""
    models = [
        model for model in LABELS if any(growth(rows, t, model) for t in targets_of(rows))
    ]  # fmt: skip
    if not models:
        return []
    heads = [f"{LABELS[model]} | exponent" for model in models]
    lines = ["| target | " + " | ".join(heads) + " |", "|---" * (1 + 2 * len(models)) + "|"]
    for target in targets_of(rows):
        cells = [f"{target} ({TARGETS[target].table_unit})"]
        for model in models:
            found = growth(rows, target, model)
            if found is None:
                cells += ["", ""]
                continue
            epochs, errors = found
            exponent = math.log(errors[1] / errors[0]) / math.log(epochs[1] / epochs[0])
            pairs = [f"{e:.4g} ({n:.3g})" for e, n in zip(errors, epochs, strict=True)]
            cells += [" to ".join(pairs), f"{exponent:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
