"""Tables of the study, from its CSV files alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from est_ocp.evaluation.published import published
from s2efpeers.models import HYBRID, LABELS, VARIANTS, label_of
from s2efpeers.plan import tuning_scores
from s2efpeers.report import (
    UNITS,
    VALIDATION,
    Rows,
    compared,
    final,
    is_of,
    judged,
    percent,
    values_of,
)
from s2efpeers.training import METRICS


def main_table(trainings: Rows, curves: Rows, epoch: float, stage: str = "main") -> list[str]:
    """One line a model: size, speed, and the mean over the four splits that counts.

    Parameters
    ----------
    epoch : float
        Steps of one pass over the training set.
    """
    results = final(curves, stage)
    head = ["model", "parameters", "lr", "seeds", "steps/s", "passes", "peak GiB"]
    head += [UNITS[metric][0] for metric in METRICS]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    leaders = {metric: _leader(results, metric) for metric in METRICS}
    mean = judged(results)
    for model, seeds in results.items():
        rows = [row for row in trainings if is_of(row, stage, model)]
        cells = [
            label_of(model),
            f"{int(rows[0]['parameters']):,}",
            "/".join(sorted({row["lr"] for row in rows})),
            str(len(seeds)),
            f"{np.mean([float(row['steps_per_second']) for row in rows]):.1f}",
            f"{np.mean([float(row['steps']) for row in rows]) / epoch:.1f}",
            f"{max(float(row['peak_gib']) for row in rows):.1f}",
        ]
        for metric in METRICS:
            text = _spread_text(values_of(seeds, mean, metric), metric)
            cells.append(f"**{text}**" if leaders[metric] == model else text)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _leader(results: dict, metric: str) -> str | None:
    """Model with the best mean; None where several share it."""
    mean = judged(results)
    means = {model: values_of(seeds, mean, metric).mean() for model, seeds in results.items()}
    choose = min if metric.endswith("mae") else max
    best = [m for m, value in means.items() if value == choose(means.values())]
    return best[0] if len(best) == 1 else None


def _spread_text(values: np.ndarray, metric: str) -> str:
    values = values * UNITS[metric][1]
    digits = {"forces_cosine": 3, "ewt": 2, "efwt": 2, "efwt10": 1}.get(metric, 1)
    text = f"{values.mean():.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {values.std(ddof=1):.{digits}f}"


def split_table(curves: Rows) -> list[str]:
    """Energy MAE, force MAE and EFwT of each split."""
    results = final(curves, "main")
    splits = [*VALIDATION, *dict.fromkeys(("mean", judged(results)))]
    head = ["model", "metric", *splits]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for model, seeds in results.items():
        for metric in METRICS:
            cells = [_spread_text(values_of(seeds, split, metric), metric) for split in splits]
            lines.append(f"| {label_of(model)} | {UNITS[metric][0]} | " + " | ".join(cells) + " |")
    return lines


def sweep_table(curves: Rows, failures: Rows) -> list[str]:
    """Score of every learning rate that was tried, the best in bold."""
    scores = tuning_scores(curves)
    lost = {(row["model"], row["lr"]) for row in failures if row["stage"] == "sweep"}
    rates = sorted({rate for _, rate in [*scores, *lost]}, key=float)
    models = [m for m in LABELS if any(name == m for name, _ in [*scores, *lost])]
    lines = ["| model | " + " | ".join(rates) + " |", "|---" * (len(rates) + 1) + "|"]
    for model in models:
        known = {rate: scores[model, rate] for rate in rates if (model, rate) in scores}
        cells = []
        for rate in rates:
            if rate in known:
                text = f"{known[rate]:.4f}"
                cells.append(f"**{text}**" if known[rate] == min(known.values()) else text)
            else:
                cells.append("failed" if (model, rate) in lost else "not run")
        lines.append(f"| {label_of(model)} | " + " | ".join(cells) + " |")
    return lines


def sweep_remarks(curves: Rows) -> list[str]:
    """Models whose best rate is an end of those tried."""
    scores = tuning_scores(curves)
    by_model: dict[str, dict[float, float]] = defaultdict(dict)
    for (model, rate), score in scores.items():
        by_model[model][float(rate)] = score
    lines = []
    for model in (m for m in LABELS if len(by_model.get(m, ())) > 1):
        rates = by_model[model]
        best = min(rates, key=rates.__getitem__)
        if best in (min(rates), max(rates)):
            end = "lowest" if best == min(rates) else "highest"
            lines.append(
                f"- The best rate of {label_of(model)}, {best:g}, is the {end} that was tried: a "
                f"{'lower' if end == 'lowest' else 'higher'} one may be better still."
            )
    return lines


def variant_table(trainings: Rows, curves: Rows) -> list[str]:
    """Variants of the hybrid and their differences to it."""
    results = final(curves, "main") | final(curves, "variant")
    lines = [
        "| variant | parameters | steps/s | energy MAE, meV | difference | force MAE, meV/Å | "
        "difference |",
        "|---" * 7 + "|",
    ]
    for name in (HYBRID, *VARIANTS):
        if name not in results:
            continue
        rows = [r for r in trainings if r["model"] == name and r["stage"] != "sweep"]
        rate = np.mean([float(row["steps_per_second"]) for row in rows])
        cells = [label_of(name), f"{int(rows[0]['parameters']):,}", f"{rate:.1f}"]
        for metric in ("energy_mae", "forces_mae"):
            cells.append(_spread_text(values_of(results[name], judged(results), metric), metric))
            if name == HYBRID or HYBRID not in results:
                cells.append("-")
                continue
            difference, least = compared(results, HYBRID, name, metric)
            noise = " (noise)" if abs(difference) <= least else ""
            cells.append(percent(difference) + noise)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def published_table() -> list[str]:
    """The paper's figures and those of the models that it compares with, all theirs."""
    lines = ["| *theirs* | data | energy MAE, meV | force MAE, meV/Å | source |", "|---" * 5 + "|"]
    for row in published("s2ef"):
        if "mean" not in row:
            continue
        energy = row["mean"].get("energy_mae_meV", "not legible")
        forces = row["mean"].get("forces_mae_meV_per_A", "not legible")
        lines.append(
            f"| *{row['model']}* | {row['data']} | *{energy}* | *{forces}* | {row['source']} |"
        )
    return lines


def failure_list(failures: Iterable[dict[str, str]]) -> list[str]:
    """Trainings that failed, one a line."""
    return [
        f"- {label_of(row['model'])}, {row['stage']}, lr {row['lr']}, seed {row['seed']}, fast "
        f"paths: {row['fast']}: `{row['error'].splitlines()[-1][:200] if row['error'] else '-'}`"
        for row in failures
    ]
