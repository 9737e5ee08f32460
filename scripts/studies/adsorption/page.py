"""The study's page and its figure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from csv_rows import append, read

from adsorption.report import (
    PREDICTIONS,
    TRAININGS,
    by_fold,
    comparison,
    complete_folds,
    published_table,
    table,
)
from adsorption.training import LABELS, MODELS, TRIVIAL, Settings

READING = "## Reading"
ERRORS = (*(name for name in PREDICTIONS if name not in ("energy", "prediction")), "error")
#: What each kind of cross-validation asks.
LEFT_OUT = {
    "metal": (
        "Cross-validation leaves one metal out at a time: the networks meet an element whose\n"
        "embedding was never trained."
    ),
    "adsorbate": (
        "Cross-validation leaves one adsorbate out at a time: the networks meet an element whose\n"
        "embedding was never trained."
    ),
    "pair": (
        "Cross-validation leaves out a seventh of the 56 pairs of metal and adsorbate at a time,\n"
        "each metal and each adsorbate about once: all elements are known, their pairs are new."
    ),
}


def write_page(page: Path, out: Path, by: str, settings: Settings, moved: int) -> None:
    """Write the page, keeping a section :data:`READING` that somebody added to an earlier one.

    Parameters
    ----------
    page : path
        Markdown file; the figure and the CSV files are put beside it.
    out : path
        Folder with ``trainings.csv``, ``predictions.csv`` and ``origin-{by}.json``.
    by : str
        What is left out.
    settings : Settings
    moved : int
        Relaxed structures whose adsorbate left the named site.
    """
    rows = [row for row in read(out / "trainings.csv") if row["by"] == by]
    predictions = [row for row in read(out / "predictions.csv") if row["by"] == by]
    page.parent.mkdir(parents=True, exist_ok=True)
    figure = page.with_suffix(".png")
    try:
        plot(rows, predictions, figure)
    except ModuleNotFoundError as error:
        print(f"no figure: {error}; run again with --minutes 0 where matplotlib is installed")
    # The published energies stay where they were published: beside the page go errors only.
    errors = page.with_name(f"{page.stem}_errors.csv")
    trainings = page.with_name(f"{page.stem}_trainings.csv")
    for path in (errors, trainings):
        path.unlink(missing_ok=True)
    append(trainings, TRAININGS, rows)
    append(errors, ERRORS, [error_row(row) for row in predictions])
    full = complete_folds(rows)
    counted = sum(len(folds) for folds in full.values())
    file = out / f"origin-{by}.json"
    origin = json.loads(file.read_text()) if file.is_file() else {"command": "-", "machine": {}}
    command = origin["command"]
    machine = ", ".join(f"{name} {value}" for name, value in origin["machine"].items())
    several = " Plus-minus in a fold: standard deviation over seeds." if len(full) > 1 else ""
    ran = sum(row["model"] not in TRIVIAL for row in rows)
    stayed = (
        "and its adsorbate is at the named site"
        if not moved
        else (f"but in {moved} of them the adsorbate is at another site")
    )
    text = f"""# Adsorption energies from ideal structures: IS2RE on real DFT

## Question

OC20's task IS2RE asks for the energy of the relaxed structure, given the initial one. Does
Equiformer with the EST update learn it from little real data as well as Equiformer with its own
feed-forward block, at equal epochs?

## Method

882 PBE adsorption energies (eV for each adsorbed atom) of C, F, H, Cl, O, N, S and Br on (111)
surfaces of Pt, Ag, Ir, Au, Pd, Rh and Cu at four sites and four coverages: Z. Xu and J. R. Kitchin,
J. Phys. Chem. C 118, 25597 (2014), supporting information. The file is not part of this
repository. The inputs are ideal, unrelaxed structures that the script builds: an fcc(111) slab of
2 x 2 x 4 atoms at the metal's PBE lattice constant, and adsorbed atoms at the named site, as high
as covalent radii say. Each published relaxed structure has the same composition, coverage and cell,
{stayed}.

{LEFT_OUT[by]} Every training runs in fairchem's trainer
(`train_is2re`: AdamW, cosine, averaged weights): {settings.epochs} epochs of batches of
{settings.batch_size}, peak learning rate {settings.lr:g}, for all models alike. Nothing was tuned
on these folds, and the weights after the last epoch are taken. The models are reduced to fit so
few data; figures of the full-size models on OC20 do not follow from these:

{_model_list()}

Two predictors without a network: the mean training energy of the same adsorbate (of all, where it
is new); and a sum of terms for metal, adsorbate, site and coverage, fitted by least squares (a new
metal or adsorbate has the mean term).

## Command

    {command}

{machine}.

## Result

MAE in eV for what is left out, from the {counted} pairs of fold and seed that every model finished
({ran} trainings ran).{several}

{chr(10).join(table(rows))}

{comparison(rows)}

![Parity plots and errors by fold]({figure.name})

Error bars: standard deviation over seeds; of the mean, over folds. The error of every structure is
in [{errors.name}]({errors.name}), every training in [{trainings.name}]({trainings.name}).

The paper's own figures (theirs: Table 2 of arXiv 2505.23086). They are of OC20, which is other and
far more data, and of models of full size, so they do not compare with those above:

{chr(10).join(published_table())}
"""
    reading = kept_reading(page)
    page.write_text(text + (f"\n{reading}\n" if reading else ""))


def error_row(row: dict[str, str]) -> dict[str, str]:
    """Return a prediction's row with its error, eV, in place of the two energies."""
    kept = {column: row[column] for column in ERRORS if column != "error"}
    return kept | {"error": f"{float(row['prediction']) - float(row['energy']):.5f}"}


def _model_list() -> str:
    """Each model's config and overrides, one line each."""
    return "\n".join(f"- {LABELS[name]}: `{' '.join(words)}`" for name, words in MODELS.items())


def plot(rows: list[dict[str, str]], predictions: list[dict[str, str]], path: Path) -> None:
    """Parity plots of every model and a bar chart of the folds, one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    mae = by_fold(rows, "mae")
    folds = sorted({fold for values in mae.values() for fold in values})
    mosaic = [list(mae), ["folds"] * len(mae)]
    figure, axes = plt.subplot_mosaic(mosaic, figsize=(max(7.0, 3.3 * len(mae)), 7.0))
    energies = [float(row["energy"]) for row in predictions]
    ends = [min(energies) - 0.3, max(energies) + 0.3]
    full = complete_folds(rows)
    for model in mae:
        axis = axes[model]
        shown = [
            row
            for row in predictions
            if row["model"] == model
            and (model in TRIVIAL or row["held_out"] in full.get(row["seed"], ()))
        ]
        axis.plot(ends, ends, color="0.6", linewidth=0.8)
        for adsorbate in sorted({row["adsorbate"] for row in shown}):
            points = [row for row in shown if row["adsorbate"] == adsorbate]
            axis.plot(
                [float(p["energy"]) for p in points],
                [float(p["prediction"]) for p in points],
                ".", markersize=3, label=adsorbate,
            )  # fmt: skip
        mean = np.mean([values.mean() for values in mae[model].values()])
        axis.set(xlim=ends, ylim=ends, xlabel="DFT, eV")
        axis.set_title(f"{LABELS[model]}\nMAE {mean:.3f} eV", fontsize=8)
    first = axes[next(iter(mae))]
    first.set_ylabel("predicted for the group left out, eV")
    first.legend(fontsize=6, markerscale=2)
    bars = axes["folds"]
    width = 0.8 / len(mae)
    for number, (model, values) in enumerate(mae.items()):
        means = np.array([values[fold].mean() for fold in folds])
        seeds = [values[fold].std(ddof=1) if len(values[fold]) > 1 else 0.0 for fold in folds]
        over = means.std(ddof=1) if len(means) > 1 else 0.0
        place = np.arange(len(folds) + 1) + (number - (len(mae) - 1) / 2) * width
        bars.bar(
            place, [*means, means.mean()], width, yerr=[*seeds, over], capsize=2,
            label=LABELS[model],
        )  # fmt: skip
    bars.set_xticks(range(len(folds) + 1), [*folds, "mean"])
    bars.set(xlabel="left out", ylabel="MAE, eV", ylim=(0, None))
    # Above the axes, where no bar can be.
    bars.legend(
        fontsize=7, ncols=len(mae), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0)
    )
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def kept_reading(path: Path) -> str:
    """Return the hand-written last section of an earlier page."""
    text = path.read_text() if path.is_file() else ""
    return text[text.index(READING) :].rstrip() if READING in text else ""
