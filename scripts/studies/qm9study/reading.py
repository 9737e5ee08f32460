"""What the study's figures say in words, and no more than their noise allows."""

from __future__ import annotations

import math

from est_ocp.qm9_targets import TARGETS
from qm9study.models import HOSTS, LABELS
from qm9study.tables import Row, mean, relative_noise, targets_of, values

#: A difference of so many standard deviations is called one.
DEVIATIONS = 2.0


def verdicts(rows: list[Row]) -> list[str]:
    """One line for each EST variant, host and target: which is better, and whether that is noise.

    Parameters
    ----------
    rows : list of dict
        Trainings of one length, each on one target or all on all.
    """
    noise = relative_noise(rows)
    lines = []
    for variant, hosts in HOSTS.items():
        for target in targets_of(rows):
            for host in hosts:
                line = _verdict(rows, target, host, variant, noise)
                lines += [line] if line else []
    if lines and noise is None:
        lines.append(
            "- Each figure is one training; how much another seed would change it was not measured."
        )
    elif lines:
        lines.append(
            f"- Repeats with other seeds differ by {100 * noise:.1f}% (standard deviation, "
            f"pooled); less than {DEVIATIONS:g} standard deviations of a difference count as noise."
        )
    return lines


def _verdict(rows: list[Row], target: str, host: str, variant: str, noise: float | None) -> str:
    own, est = (mean(rows, target, model, "test_mae") for model in (host, variant))
    if own is None or est is None:
        return ""
    change = 100 * (est / own - 1)
    text = (
        f"- {target}: with EST's update in place of the feed-forward of {LABELS[host]} the error "
        f"is {abs(change):.1f}% {'lower' if change < 0 else 'higher'} "
        f"({own:.4g} to {est:.4g} {TARGETS[target].table_unit})"
    )
    if noise is None:
        return text + "."
    counts = [len(values(rows, target, model, "test_mae")) for model in (host, variant)]
    deviation = 100 * noise * math.sqrt(sum(1 / count for count in counts))
    within = abs(change) < DEVIATIONS * deviation
    return text + (", inside the noise." if within else ", outside the noise.")


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
