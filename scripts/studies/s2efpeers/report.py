"""Comparisons and the generated reading of the study, from its CSV files alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from est_ocp.data import SPLITS
from s2efpeers.callbacks import KNOWN
from s2efpeers.models import HOST, HYBRID, LABELS, VARIANTS, label_of
from s2efpeers.training import METRICS

KEY = ("stage", "model", "lr", "seed")
TRAININGS = (
    *KEY, "parameters", "batch_size", "steps", "train_seconds", "all_seconds", "steps_per_second",
    "peak_gib", "fast", "card",
)  # fmt: skip
CURVES = (*KEY, "seconds", "step", "split", *METRICS)
FAILURES = (*KEY, "fast", "error")
VALIDATION = tuple(split for split in SPLITS if split != "train")
#: Probability of a claim where there is no difference.
LEVEL = 0.05
#: Noise above which "inside the noise" says nothing: a factor.
TELLING = 1.25
#: Metric to its unit and the factor from the stored one.
UNITS = {
    "energy_mae": ("energy MAE, meV", 1e3),
    "forces_mae": ("force MAE, meV/Å", 1e3),
    "forces_cosine": ("force cosine", 1.0),
    "ewt": ("EwT, %", 100.0),
    "efwt": ("EFwT, %", 100.0),
    "efwt10": ("EFwT x 10, %", 100.0),
}
Rows = Sequence[dict[str, str]]


def final(curves: Rows, stage: str) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Last evaluation of each training: model -> seed -> split -> metric."""
    out: dict = defaultdict(lambda: defaultdict(dict))
    for row in curves:
        if row["stage"] == stage:
            # Rows are in the order of the steps, so that the last one stays.
            out[row["model"]][row["seed"]][row["split"]] = {m: float(row[m]) for m in METRICS}
    order = list(LABELS) + list(VARIANTS)
    return {model: dict(out[model]) for model in sorted(out, key=order.index)}


def newest(trainings: Rows, rows: Rows) -> list[dict[str, str]]:
    """Leave out what was trained at a rate that later ones have replaced.

    Parameters
    ----------
    trainings : list of dict
        Rows of ``trainings.csv``, in the order in which they ended.
    rows : list of dict
        Those to choose from.
    """
    last = {(row["stage"], row["model"]): row["lr"] for row in trainings}
    return [
        row
        for row in rows
        if row["stage"] == "sweep" or row["lr"] == last.get((row["stage"], row["model"]))
    ]


def values_of(seeds: dict[str, dict[str, dict[str, float]]], split: str, metric: str) -> np.ndarray:
    """A metric of one split, by seed."""
    return np.array([splits[split][metric] for _, splits in sorted(seeds.items())])


def judged(results: dict) -> str:
    """The mean that models are compared by: over known elements where every training has it."""
    every = all(KNOWN in splits for seeds in results.values() for splits in seeds.values())
    return KNOWN if results and every else "mean"


def spread(results: dict, metric: str) -> tuple[float, int]:
    """Standard deviation of the logarithm over seeds, pooled over models, and its freedom."""
    mean = judged(results)
    squares, freedom = 0.0, 0
    for seeds in results.values():
        values = np.log(values_of(seeds, mean, metric))
        squares += float(((values - values.mean()) ** 2).sum())
        freedom += len(values) - 1
    return (math.sqrt(squares / freedom) if freedom else math.nan), freedom


def is_of(row: dict[str, str], stage: str, model: str) -> bool:
    """Whether a row is of a model in a stage."""
    return (row["stage"], row["model"]) == (stage, model)


def compared(results: dict, first: str, second: str, metric: str) -> tuple[float, float]:
    """Logarithm of the second model's metric over the first's, and the least that can be claimed.

    Geometric means over seeds of the mean that counts (:func:`judged`); a t-test at :data:`LEVEL`
    with the pooled spread of seeds, the same for all models. Without repeated seeds nothing can be
    claimed: the least is infinite.
    """
    from scipy.stats import t

    mean = judged(results)
    a, b = (np.log(values_of(results[name], mean, metric)) for name in (first, second))
    deviation, freedom = spread(results, metric)
    if not freedom:
        return float(b.mean() - a.mean()), math.inf
    error = deviation * math.sqrt(1 / len(a) + 1 / len(b))
    return float(b.mean() - a.mean()), float(t.ppf(1 - LEVEL / 2, freedom)) * error


def percent(logarithm: float) -> str:
    """A logarithm of a ratio as a change in percent."""
    return f"{100 * math.expm1(logarithm):+.1f}%"


def sentence(results: dict, first: str, second: str, metric: str) -> str:
    """One sentence on two models and one metric, with no claim inside the noise."""
    difference, least = compared(results, first, second, metric)
    name = UNITS[metric][0].split(",")[0]
    head = f"{label_of(second)} against {label_of(first)}, {name}: {percent(difference)}"
    if math.isinf(least):
        return f"{head}; no model has several seeds, so nothing can be claimed."
    bounds = f"{percent(-least)} to {percent(least)}"
    if abs(difference) <= least:
        return f"{head}, inside the noise ({bounds})."
    return f"{head}, **{'higher' if difference > 0 else 'lower'}** beyond the noise ({bounds})."


def reading(trainings: Rows, curves: Rows) -> list[str]:
    """Sentences on host and hybrid, then on the others against the hybrid."""
    results = final(curves, "main")
    lines = []
    if HOST in results and HYBRID in results:
        rates = [
            np.mean([float(r["steps_per_second"]) for r in trainings if is_of(r, "main", model)])
            for model in (HOST, HYBRID)
        ]
        more = percent(math.log(rates[1] / rates[0]))
        lines.append(f"- Steps in the same time, update against host: {more}.")
        for metric in ("energy_mae", "forces_mae"):
            lines.append("- " + sentence(results, HOST, HYBRID, metric))
    for other in results:
        if other in (HOST, HYBRID) or HYBRID not in results:
            continue
        for metric in ("energy_mae", "forces_mae"):
            lines.append("- " + sentence(results, HYBRID, other, metric))
    return lines


def answer(curves: Rows) -> str:
    """The study's answer in one sentence."""
    results = final(curves, "main")
    if HOST not in results or HYBRID not in results:
        return "The host and its hybrid with EST's update have not both been trained yet."
    outcomes = []
    for metric in ("energy_mae", "forces_mae"):
        difference, least = compared(results, HOST, HYBRID, metric)
        if math.isinf(least):
            return "Nothing can be said yet: seeds were not repeated."
        if abs(difference) <= least and math.exp(least) > TELLING:
            outcomes.append(
                f"not told apart from the host's own feed-forward ({percent(difference)}, but "
                f"seeds differ so much that only {percent(least)} would count)"
            )
        elif abs(difference) <= least:
            outcomes.append("as good as the host's own feed-forward within the noise")
        else:
            outcomes.append("worse" if difference > 0 else "better")
    energy, forces = outcomes
    head = "At equal time and about equal size, EST's update is"
    if energy == forces:
        return f"{head} {energy}, in energies and in forces."
    return f"{head}, in energies, {energy}; in forces, {forces}."
