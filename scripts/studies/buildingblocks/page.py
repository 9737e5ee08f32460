"""Tables and page of the study of building blocks, from its CSV file alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from csv_rows import append, read

from buildingblocks.figure import draw
from buildingblocks.runner import CSV, TRAININGS, kept_remarks, origin_lines, table
from buildingblocks.statistics import Comparison, by_variant, compare, mean_and_error
from buildingblocks.variants import (
    BASE,
    PAPER_EPOCHS,
    TABLES,
    UPDATE,
    VARIANTS,
    Variant,
    of_table,
)
from est_ocp.errors import ConfigError

Rows = Sequence[Mapping[str, str]]


def comparisons(rows: Rows) -> dict[str, Comparison]:
    """Every variant that has one against its reference, by its name."""
    pairs = [(variant.name, variant.reference) for variant in VARIANTS]
    found = compare(by_variant(rows, "test_mae"), pairs)
    return {variant: comparison for (variant, _), comparison in found.items()}


def cell(values: Mapping[int, float] | None, digits: int) -> str:
    """Mean and standard error."""
    if not values:
        return "-"
    mean, error = mean_and_error(values.values())
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def change(comparison: Comparison | None) -> str:
    """Percentage with its bound and verdict."""
    if comparison is None:
        return "-"
    if math.isinf(comparison.noise):
        return f"{comparison.percent:+.1f}% (one seed)"
    # Of logarithms, so the bound is another one in either direction.
    noise = 100 * math.expm1(math.copysign(comparison.noise, comparison.change))
    return f"{comparison.percent:+.1f}% (noise: {noise:+.1f}): {comparison.verdict}"


def variant_table(rows: Rows, name: str, found: Mapping[str, Comparison]) -> list[str]:
    """Markdown of one of :data:`TABLES`; empty if none of its variants ran."""
    errors = by_variant(rows, "test_mae")
    columns = {
        key: by_variant(rows, key)
        for key in ("step_ms", "inference_ms", "parameters", "rotation_error")
    }
    lines = []
    own = [variant for variant in VARIANTS if variant.table == name]
    if not any(variant.name in errors for variant in own):
        return []
    for variant in of_table(name):
        if variant.name not in errors:
            continue
        figures = {
            key: mean_and_error(values[variant.name].values())[0] for key, values in columns.items()
        }
        lines.append(
            [
                label_in(variant, name),
                cell(errors[variant.name], 4),
                change(found.get(variant.name)) if variant.table == name else "-",
                f"{figures['step_ms']:.2f}",
                f"{figures['inference_ms']:.2f}",
                f"{figures['parameters'] / 1e3:.0f}k",
                f"{figures['rotation_error']:.1e}",
                f"*{variant.paper:g}*" if variant.paper else "",
            ]
        )
        if name == "experts":
            lines[-1].append(f"*{PAPER_EPOCHS[int(variant.name.split()[1])]:.2f}*")
    head = ["variant", "test MAE", "against its reference", "ms a step", "ms inference",
            "parameters", "rotation error", "*paper's MAE*"]  # fmt: skip
    if name == "experts":
        head.append("*paper's time an epoch*")
    return ["", f"### {TABLES[name]}", "", *table(head, lines)]


def label_in(variant: Variant, name: str) -> str:
    """What a variant is called in a table that may not be its own."""
    if variant.table == name:
        return variant.label
    if name in ("top_k", "balance"):
        return "10 (dense)" if name == "top_k" else "0"
    return variant.label


def reading(rows: Rows, found: Mapping[str, Comparison]) -> list[str]:
    """One paragraph that says only what is beyond the noise."""
    labels = {variant.name: variant for variant in VARIANTS}
    known = {name: c for name, c in found.items() if not math.isinf(c.noise)}
    if not known:
        return ["No variant has two seeds together with its reference: nothing can be said."]
    out = []
    for verdict in ("lower", "higher"):
        some = [
            f"{labels[name].label} ({TABLES[labels[name].table].split(' (')[0].lower()}; "
            f"{c.percent:+.1f}%)"
            for name, c in sorted(known.items(), key=lambda pair: pair[1].change)
            if c.verdict == verdict
        ]
        text = "; ".join(some) if some else "none"
        out.append(f"Error {verdict} than the reference's, beyond the noise: {text}.")
    inside = sum(c.verdict == "inside the noise" for c in known.values())
    noise = 100 * math.expm1(min(c.noise for c in known.values()))
    out.append(
        f"The other {inside} of {len(known)} comparisons are inside the noise, which is "
        f"{noise:.1f}% or more: of these nothing is claimed, in either direction."
    )
    out.append(paper_sentence(known))
    return [" ".join(out)]


def paper_sentence(known: Mapping[str, Comparison]) -> str:
    """How many of the paper's orderings show here."""
    by_name = {variant.name: variant for variant in VARIANTS}
    same = opposite = open_ = 0
    for name, comparison in known.items():
        variant = by_name[name]
        reference = by_name[variant.reference]
        if not variant.paper or not reference.paper:
            continue
        sign = math.copysign(1.0, variant.paper - reference.paper)
        if comparison.verdict == "inside the noise":
            open_ += 1
        elif math.copysign(1.0, comparison.change) == sign:
            same += 1
        else:
            opposite += 1
    return (
        f"Of the paper's own orderings among these ({same + opposite + open_}), {same} show here, "
        f"{opposite} show the other way round, and {open_} are inside the noise. The paper gives "
        "one figure each and no spread."
    )


def write_page(page: Path, out: Path) -> Path:
    """Write page, figure and CSV; a section ``## Remarks`` of an earlier page stays.

    Parameters
    ----------
    page : path
        Markdown file; the figure and the CSV stand beside it under its name.
    out : path
        Folder of the trainings.
    """
    rows = read(out / CSV)
    page.parent.mkdir(parents=True, exist_ok=True)
    copy_ = page.with_suffix(".csv")
    copy_.unlink(missing_ok=True)
    append(copy_, TRAININGS, rows)
    found = comparisons(rows)
    image = page.with_suffix(".png")
    try:
        draw(rows, found, image)
    except ConfigError as error:
        print(error)
    protocol = json.loads((out / "protocol.json").read_text())
    seeds = sorted({int(row["seed"]) for row in rows})
    epochs = "/".join(sorted({row["epochs"] for row in rows}))
    cards = ", ".join(sorted({row["card"] for row in rows}))
    modes = sorted({row["mode"] for row in rows})
    lines = [
        "# Building blocks and mixture of experts, QM9 alpha (the paper's Tables 6-8 and 13)",
        "",
        "## Question",
        "",
        "Which parts of EST's update does the error need, how many experts, how sparse and how",
        "balanced a gate, which points; and what does each cost?",
        "",
        "## Method",
        "",
        "One small model, Equiformer's linear messages with EST's update (three layers, L = 2),",
        f"varied in one thing at a time. All variants train for {protocol['steps']} steps of",
        f"{protocol['batch_size']} molecules ({epochs} passes over the training set), at a largest",
        f"learning rate of {protocol['lr']:g}, with the same loss (mean absolute error), schedule",
        "(warm-up, cosine), clipping and averaged weights; nothing was tuned for any of them.",
        "Seeds are paired: a seed draws the weights and the order of the data, which is the same",
        f"for all variants. Seeds: {', '.join(map(str, seeds))}.",
        "",
        "Equal steps and not equal seconds: the paper's tables are at equal epochs; several",
        "trainings share a card, whose seconds would then not be equal; and time alone on the card",
        "stands beside every error. *ms a step* is a whole training step, *ms inference* the",
        "prediction of a batch of the same size, both of one model alone on the card"
        + (" as CUDA graphs." if modes == ["graph"] else f" ({', '.join(modes)})."),
        "The loop is the study's own and not fairchem's trainer, which would take longer to start",
        "than these trainings take.",
        "",
        "*test MAE*: bohr^3, averaged weights after the last step, the whole test split; mean and",
        "standard error over seeds. *rotation error*: mean change of the prediction when a",
        "molecule is turned, bohr^3, float64. *against its reference*: mean difference of the",
        "errors' logarithms over seeds, in percent, with the bound for all comparisons of the page",
        "at once (95%, Bonferroni; one standard deviation for all, of the paired differences).",
        "References: all of EST's update; in Table 6 one expert; in Tables 7 and 8 ten dense",
        "experts; for the diagonal inverse the Fibonacci points with quadrature. Top-K computes",
        "all experts, so its time is the dense gate's.",
        "",
        "Errors are many times the paper's: a training here is seconds, theirs hundreds of",
        "epochs. The paper's figures (*theirs*, in italics) compare with each other alone. Table 6",
        "has their times an epoch, too; the unit is not in the text we have.",
        "",
        f"Base: `{' '.join((*BASE, *UPDATE))}`.",
        "",
        "## Command",
        "",
        *origin_lines(out),
        "",
        f"Trainings on: {cards}.",
        "",
        "## Result",
    ]
    for name in TABLES:
        lines += variant_table(rows, name, found)
    missing = [v.name for v in VARIANTS if v.name not in {row["variant"] for row in rows}]
    if missing:
        lines += ["", f"Not trained (yet): {', '.join(missing)}."]
    if image.is_file():
        lines += [
            "",
            f"![Errors of all variants, number of experts, latency]({image.name})",
            "",
            "Lower right: colours and marks are the tables'; building blocks, parts, numbers of",
            "experts and three of the options have their names.",
        ]
    lines += ["", "## Reading", "", *reading(rows, found), *kept_remarks(page)]
    page.write_text("\n".join(lines) + "\n")
    return page
