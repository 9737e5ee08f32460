"""The study's page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from est_ocp.evaluation.machine import machine_info
from folds.figure import plot
from folds.plan import DEGREES, FOLDS, SWEEP, table_points
from folds.report import Row, geometric, grid, markdown, percent, select, values
from folds.training import ORIENTATIONS, TIE, Protocol, sphere_rule

READING = "## Reading"


def write_page(page: Path, rows: list[Row], protocol: Protocol, command: str) -> None:
    """Write page and figure, keeping a section :data:`READING` added to an earlier one.

    Parameters
    ----------
    page : path
        Markdown file; the figure goes beside it.
    rows : list of dict
        The CSV file's.
    protocol : Protocol
        Of the trainings.
    command : str
        What made them.
    """
    figure = page.with_suffix(".png")
    try:
        plot(rows, figure)
    except ModuleNotFoundError as error:
        print(f"no figure: {error}; run again with --minutes 0 where matplotlib is installed")
    machine = ", ".join(f"{name} {value}" for name, value in machine_info().items())
    minutes = values(rows, "seconds").sum() / 60 if rows else 0.0
    text = f"""# Expressiveness: structures with k-fold symmetry

## Question

The paper's table 4 says that one EST layer of degree 1 tells apart structures with up to 100-fold
symmetry, where layers of tensor products fail as soon as the fold exceeds L. Is that so, and does
it depend on the error of equivariance that sampling the sphere brings?

## What can be said beforehand

The task (Joshi et al. 2023, arXiv 2301.09308) is to recognise an orientation: k neighbours form a
regular polygon around an atom; in the second structure they are turned by half the angle, `pi / k`,
about its axis. A linear classifier reads the atom's features of degree up to L after one layer.

Let a layer be exactly equivariant, whatever it computes inside. The polygon is its own image under
the turn by `2 pi / k`, so the features `f` are unchanged by it: only orders m that are multiples of
k can be in them. For `k > L` that leaves `m = 0`, which no turn about the axis changes, so both
structures have the same features. High degrees that products on the sphere make for a while do not
help: the way back to coefficients of degree L removes them. **For fold > L no exactly equivariant
layer with features of degree L can solve the task**, with or without tensor products.

Now let features of a turned structure differ by up to `e |f|` from the turned features. The
features of the first structure are then within `e |f|` of their average over the k turns, which is
symmetric about the axis; so turning them by `pi / k` changes them by `2 e |f|` at most; and the
features of the second structure are within `e |f|` of that: `|f_1 - f_2| <= 3 e |f|`. All that
a layer sees beyond L is its error.

Without a frame the two structures are the same, one turned is the other: a classifier that reads
features of randomly turned structures as they are has 50%, whatever the layer. What can be asked
is whether features that are turned back into the structure's frame still are told apart.

## Method

One EST message block and one EST update block with residuals, one spherical expert each and no
steerable experts, 8 channels; a tensor field layer; and a MACE-style layer, which multiplies up
to three sums over neighbours (e3nn's harmonics and 3j symbols). Messages go from the neighbours to
the centre. The classifier is linear, as in Joshi et al. Adam, learning rate {protocol.lr:g}, both
structures in each step, up to {protocol.epochs} epochs in float64; a training ends at a loss of
{protocol.enough:g}, or after {protocol.patience} epochs if the features of the two structures
differ by less than {protocol.hopeless:g} of their norm. A structure given its class with a
probability within {TIE:g} of one half counts half. Every seed has its own weights and its own
general orientation of the pair. "±" is the standard deviation over {_most_seeds(rows)} seeds in the
tables of L against fold, or as many as a cell says, and over a third as many in the others.

- *as given*: accuracy in the orientation of the training, the paper's question.
- *turned at random*: the same classifier on {ORIENTATIONS} random orientations
  ({ORIENTATIONS // 2} for 100-fold) of the structures, features turned back.
- *error*: relative change of the features in those orientations; *difference*: of the two
  structures' features, both relative to the norm of the features; geometric means over seeds.

EST in the first tables is as in the paper: Fibonacci lattice of `(2L + 1)(2L + 2)` points (242 at
L = 10), diagonal inverse, LayerNorm at each point of the update. The sweep over points uses the
package's defaults.

## Command

    {command}

2-core x86 container, CPU, one thread, shared with other jobs; {minutes:.0f} minutes of processor
time. {machine}.

## Accuracy as given

EST, percent:

{_est_table(rows, "accuracy")}

TFN and MACE-style layers, percent:

{_tensor_table(rows)}

The paper's figures (theirs, table 4): EST 100.0 ± 0.0 for L = 1, 2, 3, 5, 10 at 2, 3, 10 and 100
fold; TFN and MACE:

{_their_table()}

## Turned at random

EST, trained as given, on random orientations with features turned back, percent. TFN and MACE keep
their accuracy to the digit ({_tensor_change(rows)} is their largest change).

{_est_table(rows, "accuracy_back")}

Error of the layers as drawn, then after training; then the difference of the structures as drawn:

{_est_table(rows, "error_start", geometric)}

{_est_table(rows, "error_end", geometric)}

{_est_table(rows, "difference_start", geometric)}

Trained in random orientations, a new one for each structure and step, features turned back. This
is the same as turning the points of the sphere at random, which the authors' implementation does
in training. *best epoch*: the highest accuracy of any epoch by the larger logit, however small the
margin, each epoch in its own orientations; the benchmark's published code reports the best epoch.

{_turned_table(rows)}

In float32 (L = 1, 12 points), where rounding puts a floor of about 1e-7 under the difference:

{_float32_table(rows)}

The norm between message and update matters: features that the symmetry makes vanish (all those of
degree 1) come out of the message as sampling errors, and the norm scales them up. Without it:

{_unnormalised_table(rows)}

## More and better points

Degree 1, package defaults; *degree* is what the rule integrates exactly.

{_sweep_table(rows, FOLDS[:2])}

{_sweep_table(rows, FOLDS[2:])}

![Differences against errors, accuracy by points]({figure.name})

Left: every mark is one rule, degree and fold (layers as drawn, geometric mean over seeds); values
around 1e-16 are rounding. The bound holds for the largest error of any rotation, the marks have
mean errors. All runs are in [{page.stem}.csv]({page.stem}.csv).
"""
    old = page.read_text() if page.is_file() else ""
    reading = old[old.index(READING) :].rstrip() if READING in old else ""
    page.write_text(text + (f"\n{reading}\n" if reading else ""))


def _est_table(rows: list[Row], name: str, shown: Callable[[list[Row], str], str] = percent) -> str:
    """Degrees against folds, EST as in the paper."""
    est = select(rows, part="table", layer="est")

    def cell(number: int, fold: int) -> str:
        some = select(est, lmax=DEGREES[number], fold=fold)
        text = shown(some, name)
        return text + _fewer(rows, some) if name.startswith("accuracy") else text

    names = [f"L = {lmax}, {table_points(lmax)} points" for lmax in DEGREES]
    return grid("EST", names, FOLDS, cell)


def _most_seeds(rows: list[Row]) -> int:
    """Number of seeds of the cells of the table."""
    return len({row["seed"] for row in select(rows, part="table")})


def _fewer(rows: list[Row], cell: list[Row]) -> str:
    """Number of a cell's seeds where it is smaller."""
    noun = "seed" if len(cell) == 1 else "seeds"
    return f" ({len(cell)} {noun})" if 0 < len(cell) < _most_seeds(rows) else ""


def _tensor_table(rows: list[Row]) -> str:
    """Degrees against folds, TFN and MACE."""
    kinds = [(layer, lmax) for layer in ("tfn", "mace") for lmax in DEGREES]

    def cell(number: int, fold: int) -> str:
        layer, lmax = kinds[number]
        some = select(rows, part="table", layer=layer, lmax=lmax, fold=fold)
        return percent(some, "accuracy") + _fewer(rows, some)

    names = [f"{layer.upper()}, L = {lmax}" for layer, lmax in kinds]
    return grid("layer", names, FOLDS[:4], cell)


def _their_table() -> str:
    """The paper's right half."""

    def cell(number: int, fold: int) -> str:
        return "100.0 ± 0.0" if DEGREES[number] >= fold else "50.0 ± 0.0"

    return grid("theirs", [f"TFN/MACE, L = {lmax}" for lmax in DEGREES], FOLDS[:4], cell)


def _tensor_change(rows: list[Row]) -> str:
    """Largest change of TFN's and MACE's accuracy under rotation."""
    some = select(rows, part="table", layer="tfn") + select(rows, part="table", layer="mace")
    change = abs(values(some, "accuracy") - values(some, "accuracy_back"))
    return f"{change.max():.1f}" if len(change) else "-"


def _turned_table(rows: list[Row]) -> str:
    """Training in random orientations."""
    some = select(rows, part="turned")
    keys = sorted({(row["layer"], int(row["lmax"]), int(row["fold"])) for row in some})
    lines = []
    for layer, lmax, fold in keys:
        cell = select(some, layer=layer, lmax=lmax, fold=fold)
        name = f"{layer.upper()}, L = {lmax}"
        figures = [percent(cell, key) for key in ("accuracy_back", "accuracy_best_epoch")]
        lines.append([name, str(fold), *figures, geometric(cell, "error_end")])
    return markdown(["layer", "fold", "accuracy, turned at random", "best epoch", "error"], lines)


def _float32_table(rows: list[Row]) -> str:
    """Single precision."""
    some = select(rows, part="float32")
    names = ["accuracy", "accuracy_best_epoch"]
    labels = ["as given", "best epoch, larger logit"]
    return grid("float32", labels, FOLDS, lambda i, k: percent(select(some, fold=k), names[i]))


def _unnormalised_table(rows: list[Row]) -> str:
    """Without the norm between message and update: errors and accuracies."""
    some = select(rows, part="no_norm")
    shown = (
        ("error as drawn", "error_start", geometric),
        ("difference as drawn", "difference_start", geometric),
        ("as given", "accuracy", percent),
        ("turned at random", "accuracy_back", percent),
    )
    kinds = [(lmax, *one) for lmax in (1, 2) for one in shown]

    def cell(number: int, fold: int) -> str:
        lmax, _, name, text = kinds[number]
        return text(select(some, lmax=lmax, fold=fold), name)

    names = [f"L = {lmax}, {label}" for lmax, label, *_ in kinds]
    return grid("no norm", names, FOLDS, cell)


def _sweep_table(rows: list[Row], folds: tuple[int, ...]) -> str:
    """Rules against error, difference and accuracy."""
    lines = []
    for kind, points in SWEEP:
        line = [f"{kind} {points}", str(sphere_rule(kind, points).degree)]
        for fold in folds:
            cell = select(rows, part="sweep", kind=kind, points=points, fold=fold)
            line += [geometric(cell, "error_start"), geometric(cell, "difference_start")]
            line += [geometric(cell, "error_end")]
            line += [percent(cell, "accuracy"), percent(cell, "accuracy_back")]
        lines.append(line)
    header = ["rule", "degree"]
    for fold in folds:
        header += [f"{fold}-fold: error drawn", "difference drawn", "error trained"]
        header += ["as given", "turned at random"]
    return markdown(header, lines)
