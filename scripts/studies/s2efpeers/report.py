"""Tables and the generated reading of the study, from its CSV files alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from est_ocp.data import SPLITS
from est_ocp.evaluation.published import published
from s2efpeers.callbacks import KNOWN
from s2efpeers.models import HOST, HYBRID, LABELS, VARIANTS, label_of
from s2efpeers.plan import tuning_scores
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


def _values(seeds: dict[str, dict[str, dict[str, float]]], split: str, metric: str) -> np.ndarray:
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
        values = np.log(_values(seeds, mean, metric))
        squares += float(((values - values.mean()) ** 2).sum())
        freedom += len(values) - 1
    return (math.sqrt(squares / freedom) if freedom else math.nan), freedom


def _is(row: dict[str, str], stage: str, model: str) -> bool:
    return (row["stage"], row["model"]) == (stage, model)


def compared(results: dict, first: str, second: str, metric: str) -> tuple[float, float]:
    """Logarithm of the second model's metric over the first's, and the least that can be claimed.

    Geometric means over seeds of the mean that counts (:func:`judged`); a t-test at :data:`LEVEL`
    with the pooled spread of seeds, the same for all models. Without repeated seeds nothing can be
    claimed: the least is infinite.
    """
    from scipy.stats import t

    mean = judged(results)
    a, b = (np.log(_values(results[name], mean, metric)) for name in (first, second))
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
            np.mean([float(r["steps_per_second"]) for r in trainings if _is(r, "main", model)])
            for model in (HOST, HYBRID)
        ]
        lines.append(
            f"- In the same time the update makes {percent(math.log(rates[1] / rates[0]))} steps."
        )
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
        rows = [row for row in trainings if _is(row, stage, model)]
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
            text = _spread_text(_values(seeds, mean, metric), metric)
            cells.append(f"**{text}**" if leaders[metric] == model else text)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _leader(results: dict, metric: str) -> str | None:
    """Model with the best mean; None where several share it."""
    mean = judged(results)
    means = {model: _values(seeds, mean, metric).mean() for model, seeds in results.items()}
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
            cells = [_spread_text(_values(seeds, split, metric), metric) for split in splits]
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
        row = next(r for r in trainings if r["model"] == name and r["stage"] != "sweep")
        cells = [label_of(name), f"{int(row['parameters']):,}", row["steps_per_second"]]
        for metric in ("energy_mae", "forces_mae"):
            cells.append(_spread_text(_values(results[name], judged(results), metric), metric))
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
