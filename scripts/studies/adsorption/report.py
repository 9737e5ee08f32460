"""Tables, figures and the page of the study, from its CSV files alone."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from adsorption.training import LABELS, TRIVIAL
from est_ocp.evaluation.published import published

#: One row a structure and training; one row a training.
PREDICTIONS = (
    "by", "held_out", "model", "seed", "name", "metal", "adsorbate", "site", "coverage",
    "energy", "prediction",
)  # fmt: skip
TRAININGS = (
    "by", "held_out", "model", "seed", "train", "test", "mae", "rmse", "ewt", "epochs", "steps",
    "seconds", "parameters",
)  # fmt: skip
#: OC20's threshold for an energy within threshold, eV.
THRESHOLD = 0.02
#: Source of the paper's figures in the published ones, and the two models that are compared here.
PAPER = "arXiv 2505.23086, Table 2"
PAPER_MODELS = ("Equiformer", "EST")


def metrics(energy: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Errors of one fold, eV; ``ewt`` is a fraction."""
    error = np.abs(prediction - energy)
    return {
        "mae": float(error.mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "ewt": float((error < THRESHOLD).mean()),
    }


def models_of(rows: list[dict[str, str]]) -> list[str]:
    """Models in the order of :data:`LABELS`."""
    present = {row["model"] for row in rows}
    return [model for model in LABELS if model in present]


def complete_folds(rows: list[dict[str, str]]) -> dict[str, set[str]]:
    """Return for each seed the folds that every model has finished; others are not compared."""
    models = set(models_of(rows)) - set(TRIVIAL)
    done: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        if row["model"] not in TRIVIAL:
            done[row["seed"]][row["held_out"]].add(row["model"])
    full = {
        seed: {fold for fold, have in folds.items() if have == models}
        for seed, folds in done.items()
    }
    return {seed: folds for seed, folds in full.items() if folds}


def by_fold(rows: list[dict[str, str]], figure: str) -> dict[str, dict[str, np.ndarray]]:
    """Return model -> fold -> figure of every seed that counts."""
    full = complete_folds(rows)
    counted = set().union(*full.values()) if full else {row["held_out"] for row in rows}
    values: dict[str, dict[str, list[float]]] = {m: defaultdict(list) for m in models_of(rows)}
    for row in rows:
        fold, seed = row["held_out"], row["seed"]
        if fold not in (counted if row["model"] in TRIVIAL else full.get(seed, ())):
            continue
        values[row["model"]][fold].append(float(row[figure]))
    return {m: {f: np.array(v) for f, v in folds.items()} for m, folds in values.items() if folds}


def table(rows: list[dict[str, str]]) -> list[str]:
    """Markdown table: one line a model, one column a fold, then mean and spread over folds."""
    mae, rmse = by_fold(rows, "mae"), by_fold(rows, "rmse")
    folds = sorted({fold for values in mae.values() for fold in values})
    head = ["model", "parameters", *folds, "mean ± s.d. of folds", "RMSE", "EwT", "s a training"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    ewt, seconds = by_fold(rows, "ewt"), by_fold(rows, "seconds")
    for model, values in mae.items():
        means = np.array([values[fold].mean() for fold in folds])
        size = next(row["parameters"] for row in rows if row["model"] == model)
        cells = [
            LABELS[model],
            f"{int(size):,}",
            *(_spread(values[fold]) for fold in folds),
            f"**{means.mean():.3f}** ± {means.std(ddof=1) if len(means) > 1 else 0:.3f}",
            f"{np.mean([rmse[model][fold].mean() for fold in folds]):.3f}",
            f"{100 * np.mean([ewt[model][fold].mean() for fold in folds]):.1f}%",
            f"{np.mean([seconds[model][fold].mean() for fold in folds]):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _spread(values: np.ndarray) -> str:
    """Mean over seeds, with their spread where there are several."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def comparison(rows: list[dict[str, str]], a: str = "est", b: str = "equiformer") -> str:
    """One sentence on two models, fold by fold (their folds and seeds are the same)."""
    mae = by_fold(rows, "mae")
    if a not in mae or b not in mae:
        return f"{LABELS[a]} and {LABELS[b]} have no fold in common yet."
    pairs = [mae[a][fold] - mae[b][fold] for fold in mae[a]]
    means = np.array([pair.mean() for pair in pairs])
    spread = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else float("nan")
    return (
        f"{LABELS[a]} minus {LABELS[b]}, MAE: {means.mean():+.3f} eV, standard error over the "
        f"{len(means)} folds {spread:.3f}; the lower of the two in {int((means < 0).sum())} folds "
        f"of {len(means)} (seeds averaged)."
    )


def published_table() -> list[str]:
    """Markdown table of the paper's figures on OC20, of the two models compared here."""
    splits = {"id": "ID", "ood_ads": "OOD Ads", "ood_cat": "OOD Cat", "ood_both": "OOD Both"}
    metrics_ = {"energy_mae_meV": "energy MAE, meV", "ewt_percent": "EwT, %"}
    head = ["*theirs*", "metric", *splits.values()]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in published("is2re"):
        if row["source"] != PAPER or row["model"].split(",")[0] not in PAPER_MODELS:
            continue
        for name, label in metrics_.items():
            cells = [f"*{row['model']}*", label, *(f"*{row[split][name]}*" for split in splits)]
            lines.append("| " + " | ".join(cells) + " |")
    return lines
