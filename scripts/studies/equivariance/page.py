"""The page of the study: tables, fits and figures from the CSV files of its parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adsorption.page import kept_reading

from equivariance.figures import STYLES, plot_against_size, plot_bounds
from equivariance.fits import FLOOR, PowerLaw, best_kernel, exponential_law, power_law
from equivariance.points import ladder, smooth_discrepancies
from equivariance.tables import read_csv

#: Degree and sizes of the table by depth; the paper's models have L = 2.
DEEP_DEGREE = 2
#: Depth at which degrees are compared.
COMMON_DEPTH = 2
#: Kinds whose rules integrate polynomials up to their degree exactly.
EXACT = ("design", "lebedev", "product, weights")
#: Changes of an error by float32 that are shown.
PRECISION_CHANGE = 0.02
#: Changes from which the part of rounding can be told.
ROUNDING_CHANGE = 0.001
#: The paper's Table 5 (arXiv 2505.23086): name to errors after 1 to 6 layers.
PUBLISHED = {
    "Fibonacci, S not legible": (0.0010, 0.0011, 0.0010, 0.0018, 0.0022, 0.004),
    "Fibonacci + optimisation, S not legible": (0.0002, 0.0001, 0.0003, 0.0003, 0.0002, 0.0002),
    "Fibonacci, another S, not legible": (0.0002, 0.0002, 0.0001, 0.0002, 0.0001, 0.0003),
    "e3nn, S not legible": (0.0084, 0.1006, 0.0366, 0.0593, 0.0046, 0.0199),
}

INTRODUCTION = """# Equivariance against the points of the sphere (the paper's Table 5, extended)

## Question

EST acts on finitely many points of the sphere, so it is equivariant approximately. How large is the
error with which points, after how many layers, for which L, in which precision? Is it bounded by
the discrepancy of the points? Does random rotation of the points in training help?

## Method

Untrained EST networks (message and update blocks, the QM9 model's settings with all widths in
proportion to the number of channels; norm over the sphere) see QM9 molecules and randomly rotated
copies of them. The same weights, molecules and rotations serve all points; molecules come,
shuffled, from the 2,000 of the embedded subset. The network is cut off after each of its layers.

- *absolute*: mean of `|f(R x) - f(x)|`, f the prediction of an untrained head for a sum over atoms,
  the paper's measure (the scale of its outputs is not known);
- *relative*: that over the standard deviation of f over the molecules;
- *features*: `|u(R x) - D(R) u(x)| / |u(x)|` over all atoms' normalised features of degrees 0 to L.

The points: the lattice of the authors' code with points on the poles, the half-offset lattice, the
same after Coulomb repulsion, spherical designs, Lebedev rules, and e3nn's grids `(2l+2) x (2l+1)`
with their weights in the softmax or with a plain softmax (the weights stay in the inverse
transform). The inverse transform is the quadrature. Combinations have
`1.5 (L+1)^2 <= S <= 100 L`; above that, where exact rules come near to rounding, fewer molecules
were taken. Molecules are rotated, and outputs compared, in float64 for networks
in float32, too.
"""


def write_page(folder: Path) -> None:
    """Write ``equivariance.md`` and two figures from ``equivariance_*.csv`` in a folder.

    A section *Reading* that somebody added to an earlier page is kept.
    """
    page = folder / "equivariance.md"
    rows = read_csv(folder / "equivariance_sweep.csv")
    runs = json.loads((folder / "equivariance_runs.json").read_text())
    common = [
        row for row in rows if (row["dtype"], row["layers"]) == ("float64", _depth(rows, row["L"]))
    ]
    laws, ratios = fit(common)
    last = [
        row for row in rows if (row["dtype"], row["layers"]) == ("float64", _last(rows, row["L"]))
    ]
    plot_against_size(common, last, folder / "equivariance.png")
    plot_bounds(
        [row for row in common if row["features"] > FLOOR],
        laws,
        ratios,
        folder / "equivariance_bounds.png",
    )
    sections = [
        INTRODUCTION,
        _commands(runs, rows),
        _by_depth(rows),
        _by_degree(common, laws, ratios),
        _bounds(laws, ratios),
        _precisions(rows),
    ]
    for part, section in (("rotation", _rotation), ("trained", _trained)):
        file = folder / f"equivariance_{part}.csv"
        if file.is_file():
            sections.append(section(read_csv(file)))
    reading = kept_reading(page)
    page.write_text("\n".join(sections) + (f"\n{reading}\n" if reading else ""))


def _depth(rows: Sequence[Mapping[str, Any]], degree: int) -> int:
    return min(COMMON_DEPTH, _last(rows, degree))


def _last(rows: Sequence[Mapping[str, Any]], degree: int) -> int:
    """Number of all layers of an L in float64."""
    here = [row for row in rows if (row["L"], row["dtype"]) == (degree, "float64")]
    return max((row["layers"] for row in here), default=0)


def fit(
    rows: Sequence[dict[str, Any]],
) -> tuple[dict[int, dict[str, PowerLaw]], dict[int, float]]:
    """Laws by L and measure, and the best kernel's r by L; adds ``smooth`` to the rows."""
    sets = {(points.name, points.size): points for points in ladder()}
    laws: dict[int, dict[str, PowerLaw]] = {}
    ratios: dict[int, float] = {}
    for degree in sorted({row["L"] for row in rows}):
        here = [row for row in rows if row["L"] == degree]
        chosen = [row for row in here if row["features"] > FLOOR]
        errors = [row["features"] for row in chosen]
        used = [sets[row["points"], row["S"]] for row in chosen]
        ratios[degree], smooth = best_kernel(used, errors)
        exact = [row for row in chosen if row["points"] in EXACT]
        laws[degree] = {
            "cap_discrepancy": power_law([row["cap_discrepancy"] for row in chosen], errors),
            "smooth": smooth,
            "exactness": exponential_law(
                [row["degree"] for row in exact], [row["features"] for row in exact]
            ),
        }
        for row in here:
            rule = sets[row["points"], row["S"]].softmax_rule()
            kernel = smooth_discrepancies(rule, _tensor(ratios[degree]))
            row["smooth"] = kernel.item()
    return laws, ratios


def _tensor(value: float) -> Any:
    import torch

    return torch.tensor([value], dtype=torch.float64)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(rows + ["| " + " | ".join(line) + " |" for line in lines]) + "\n"


def _commands(runs: Mapping[str, Mapping[str, str]], rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["## Command", ""]
    machines: dict[str, dict[str, list[str]]] = {}
    for part, run in runs.items():
        machine = ", ".join(f"{name} {value}" for name, value in run.items() if name != "command")
        # One command may stand for several degrees.
        machines.setdefault(machine, {}).setdefault(run["command"], []).append(part)
    for machine, commands in machines.items():
        lines += [f"    {command}" for command in commands]
        parts = "; ".join(part for named in commands.values() for part in named)
        lines += ["", f"({parts}) {machine}.", ""]
    lines += ["    python scripts/studies/qm9_equivariance.py page", "", _size(rows), ""]
    return "\n".join(lines)


def _size(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each degree was measured on."""
    parts = []
    for degree in sorted({row["L"] for row in rows}):
        here = [row for row in rows if row["L"] == degree]
        layers = max(row["layers"] for row in here)
        most = max(row["molecules"] for row in here)
        samples = [f"{most:,} molecules"]
        for count in sorted({row["molecules"] for row in here} - {most}):
            sizes = sorted({row["S"] for row in here if row["molecules"] == count})
            samples.append(f"{count} at S = {', '.join(map(str, sizes))}")
        parts.append(
            f"L = {degree}: {' and '.join(samples)}, {here[0]['channels']} channels, "
            f"{layers} layers"
        )
    return (
        f"Sizes: {'; '.join(parts)}. The script's own are 1,000 molecules, 128 channels and six "
        "layers throughout."
    )


def _by_depth(rows: Sequence[Mapping[str, Any]]) -> str:
    deep = [row for row in rows if row["L"] == DEEP_DEGREE and row["dtype"] == "float64"]
    layers = sorted({row["layers"] for row in deep})
    lines = []
    for name, (label, *_) in STYLES.items():
        for size in sorted({row["S"] for row in deep if row["points"] == name}):
            here = [row for row in deep if (row["points"], row["S"]) == (name, size)]
            here.sort(key=lambda row: row["layers"])
            cells = [f"{row['absolute']:.1e}" for row in here]
            last = here[-1]
            measures = [f"{last['relative']:.1e}", f"{last['features']:.1e}"]
            lines.append([label, str(size), *cells, *measures])
    for label, errors in PUBLISHED.items():
        cells = [f"{error:g}" for error in errors[: len(layers)]]
        lines.append([f"*paper: {label}*", "", *(f"*{cell}*" for cell in cells), "", ""])
    header = [
        "points",
        "S",
        *(f"{layer} layer{'s' * (layer > 1)}" for layer in layers),
        "relative",
        "features",
    ]
    return f"""## By depth, L = {DEEP_DEGREE}, float64

Absolute errors after each number of layers, then the relative error and that of the features after
the last. In italics the paper's Table 5, theirs: the numbers of points and the scale of the
outputs are not in the text we have, so their rows compare with each other and not with ours.

{_table(header, lines)}"""


def _by_degree(
    rows: Sequence[Mapping[str, Any]],
    laws: Mapping[int, Mapping[str, PowerLaw]],
    ratios: Mapping[int, float],
) -> str:
    degrees = list(laws)
    shown = DEEP_DEGREE if DEEP_DEGREE in degrees else degrees[0]
    lines = []
    for name, (label, *_) in STYLES.items():
        for size in sorted({row["S"] for row in rows if row["points"] == name}):
            here = {row["L"]: row for row in rows if (row["points"], row["S"]) == (name, size)}
            row = next(iter(here.values()))
            errors = [f"{here[d]['features']:.1e}" if d in here else "" for d in degrees]
            smooth = f"{here[shown]['smooth']:.1e}" if shown in here else ""
            cap = f"{row['cap_discrepancy']:.5f}"
            lines.append([label, str(size), str(row["degree"]), cap, smooth, *errors])
    header = ["points", "S", "degree", "cap discrepancy", f"smooth, r = {ratios[shown]:.2f}"]
    header += [f"L = {degree}" for degree in degrees]
    return f"""## By L, with the discrepancy of each set, float64

Error of the features after {COMMON_DEPTH} layers. *Degree*: up to which polynomials are integrated
exactly; *cap discrepancy* and *smooth* (see below) with the weights that the softmax uses.

{_table(header, lines)}
![Error against S](equivariance.png)
"""


def _bounds(laws: Mapping[int, Mapping[str, PowerLaw]], ratios: Mapping[int, float]) -> str:
    lines = []
    for degree, by in laws.items():
        cap, smooth, exact = by["cap_discrepancy"], by["smooth"], by["exactness"]
        lines.append(
            [
                str(degree),
                str(smooth.count),
                f"{cap.r2:.2f}",
                f"{cap.bound:.0e} D^{cap.exponent:.2f}",
                f"{ratios[degree]:.2f}",
                f"{smooth.r2:.2f}",
                f"{smooth.factor:.2g} D_r",
                f"{smooth.bound:.2g} D_r",
                f"{exact.r2:.2f}",
                f"{exact.exponent:+.2f}",
            ]
        )
    header = ["L", "sets", "cap: R²", "cap: bound", "r", "smooth: R²", "smooth: fit"]
    header += ["smooth: bound", "degree: R²", "degree: decades a degree"]
    return f"""## Is the error bounded by the discrepancy?

Fits of the logarithm of the features' error. *Bound* is the law with the smallest factor that puts
it above all measured errors. Errors below {FLOOR:g} are left out as rounding.

- *Cap discrepancy* D: how evenly caps are filled. It bounds the integration error of functions
  whose coefficients fall like `l^-3/2`; the exponent is fitted.
- *Smooth discrepancy* D_r: `sum_(l>=1) r^l sum_m (sum_s w_s Y_lm(p_s))^2`, the square of the
  largest integration error among functions whose coefficients fall like `r^(l/2)`. With all
  weight on degrees up to t it would be the design energy. The fit is
  proportional to D_r, as the integration error of a function is at most its norm times D_r, and r
  is chosen, for each L, where it is best.
- *Degree* of exactness: error proportional to 10^(slope x degree), designs, Lebedev rules and
  weighted grids alone (lattices have none).

{_table(header, lines)}
![Error against the measures of the points](equivariance_bounds.png)

Solid: fit; dashed: bound.
"""


def _precisions(rows: Sequence[Mapping[str, Any]]) -> str:
    """The sets where float32 tells, and of each L the most precise one in any case."""
    found = {(row["L"], row["points"], row["S"], row["layers"], row["dtype"]): row for row in rows}
    lines, layers, same = [], [], []
    changed = 0
    for degree in sorted({row["L"] for row in rows}):
        last = max(row["layers"] for row in rows if row["L"] == degree)
        pairs = [
            (found[*key, "float32"], row)
            for (*key, dtype), row in found.items()
            if dtype == "float64" and (key[0], key[3]) == (degree, last)
            if (*key, "float32") in found
        ]
        if pairs:
            layers.append(f"{last} at L = {degree}")
        best = min((double["features"] for _, double in pairs), default=0.0)
        for single, double in pairs:
            changes = [abs(single[key] / double[key] - 1) for key in ("absolute", "features")]
            tells = max(changes) > PRECISION_CHANGE
            if tells:
                changed += 1
            else:
                same.append(changes)
            if tells or double["features"] == best:
                lines.append(_precision_line(single, double))
    if not lines:
        return ""
    absolute, features = (max(changes) for changes in zip(*same, (0.0, 0.0), strict=True))
    header = ["L", "points", "S", "absolute, float32", "absolute, float64"]
    header += ["features, float32", "features, float64", "features, rounding"]
    return f"""## Precision

After all layers ({", ".join(layers)}). In {changed} of {changed + len(same)}
combinations of points, S and L float32 changes the absolute error or that of the features by more
than {PRECISION_CHANGE:.0%}; these are here, and of each L in any case the set with the smallest
error of the features. In the others the absolute error changes by at most {absolute:.2%}, that of
the features by at most {features:.3%}. *Rounding*: the root of the difference of the squares, what
float32 adds if it is independent of the points' error; empty where the features' errors agree to
{ROUNDING_CHANGE:.1%}.

{_table(header, lines)}"""


def _precision_line(single: Mapping[str, Any], double: Mapping[str, Any]) -> list[str]:
    values = [f"{row[key]:.1e}" for key in ("absolute", "features") for row in (single, double)]
    rounding = ""
    if single["features"] > (1 + ROUNDING_CHANGE) * double["features"]:
        rounding = f"{(single['features'] ** 2 - double['features'] ** 2) ** 0.5:.1e}"
    label = STYLES[double["points"]][0]
    return [str(double["L"]), label, str(double["S"]), *values, rounding]


def _rotation(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for name in dict.fromkeys(row["points"] for row in rows):
        for random in ("False", "True"):
            here = [
                row for row in rows if (row["points"], row["random_rotation"]) == (name, random)
            ]
            steps = max(row["steps"] for row in here)
            cells = []
            for key in ("mae", "rotation_error", "floor", "relative"):
                for at in (0, steps):
                    values = [row[key] for row in here if row["steps"] == at]
                    cells.append(f"{sum(values) / len(values):.3g}")
            label = f"{STYLES[name][0]}, {here[0]['S']}"
            lines.append([label, "random" if random == "True" else "fixed", *cells])
    header = ["update's points", "frame in training", "MAE before", "MAE after"]
    header += ["rotation error before", "after", "floor before", "floor after"]
    header += ["relative before", "relative after"]
    seeds = len({row["seed"] for row in rows})
    return f"""## Random rotation of the points in training

Two-layer networks (L = 2) learn the polarisability on the embedded molecules in
{max(row["steps"] for row in rows)} steps, {seeds} seed{"s" if seeds > 1 else ""}; errors on
molecules not trained on, in bohr^3. *Rotation error*: mean `|f(R x) - f(x)|`; *floor*: the same
with precise points in the update as well, that is, what messages leave; *relative*: the rotation
error over the standard deviation of the predictions. The labels, a mean value an atom taken off,
spread by {rows[0]["label_spread"]:.1f} bohr^3. When measured the frame is fixed, and messages act
on 50 Lebedev points.

{_table(header, lines)}"""


def _trained(rows: Sequence[Mapping[str, Any]]) -> str:
    """Errors in float64, and how much float32 changes them at most."""
    names = ("forces", "prediction", "forces_absolute", "prediction_absolute")
    found = {tuple(row[k] for k in ("checkpoint", "points", "S", "dtype")): row for row in rows}
    lines, changes = [], [0.0]
    for (*key, dtype), row in found.items():
        if dtype != "float64":
            continue
        label = STYLES[row["points"]][0] if row["points"] in STYLES else row["points"]
        errors = [f"{row[name]:.1e}" if row[name] != "" else "" for name in names]
        lines.append([f"{row['checkpoint']} ({row['task']})", label, str(row["S"]), *errors])
        single = found.get((*key, "float32"), row)
        changes += [abs(single[name] / row[name] - 1) for name in names[:2] if row[name] != ""]
    header = ["checkpoint", "points of the update", "S", "forces", "prediction"]
    header += ["forces, eV/Å", "prediction, eV or bohr³"]
    return f"""## Trained models

Checkpoints of the command above, in its order (S2EF: the run of `est-ocp demo`), in float64, the
points of the EST update exchanged; those of the messages are 110 Lebedev points, except *as
configured*. *Forces*: `|F(R x) - R F(x)| / |F(x)|`. *Prediction*: mean change of the energy (S2EF)
or the target (QM9) over its standard deviation over the structures; *as configured*, as a run's
report has them, the mean by structure, and the energy over its root mean square. Last the absolute
errors: the mean change of a component of the forces, and of the energy or target. In float32 the
relative errors are others by at most {max(changes):.1%}.

{_table(header, lines)}"""
