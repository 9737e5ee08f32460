"""Published OC20 figures beside a checkpoint's own."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import numpy as np

from est_ocp.evaluation.results import Column, Results, text_table

#: Splits of a table of published figures, in their order; ours have the prefix ``val_``.
SPLITS = ("id", "ood_ads", "ood_cat", "ood_both")
_WHERE = (*SPLITS, "mean")
NOTE = (
    "Published figures are of OC20's own splits. This checkpoint's compare with them only where it "
    "was evaluated on those splits."
)


def published(task: str) -> list[dict[str, Any]]:
    """Return the published figures of a task from ``published.json``.

    Parameters
    ----------
    task : {"s2ef", "is2re"}

    Returns
    -------
    list of dict
        ``model``, ``data`` (training set), ``set`` ("val", or "unstated" where the source does not
        say), ``year``, ``source``, and by split or ``mean`` the metrics that are known, in the
        units of :data:`est_ocp.evaluation.results.COLUMNS`.
    """
    text = (files("est_ocp.evaluation") / "published.json").read_text()
    return [row for row in json.loads(text)["figures"] if row["task"] == task]


def published_text(results: Results) -> str:
    """Return one table for each metric of which anything is published."""
    rows = published(results.task)
    ours = {k.removeprefix("val_"): v for k, v in results.in_units()["model"].items()}
    if not all(split in ours for split in SPLITS):
        ours.pop("mean")  # A mean of fewer splits is no figure to compare.
    blocks = []
    for column in results.columns.values():
        known = [row for row in rows if any(column.name in row.get(s, {}) for s in _WHERE)]
        if not known:
            continue
        figures = [ours.get(split, {}).get(column.name) for split in _WHERE]
        texts = ["-" if v is None else f"{v:.{column.digits}f}" for v in figures]
        cells = [["this checkpoint", "", "", *texts, ""]]
        cells += [
            [
                row["model"], row["data"], row["set"], *_cells(row, column),
                f"{row['source']} ({row['year']})",
            ]
            for row in known
        ]  # fmt: skip
        head = ["model", "trained on", "set", *SPLITS, "mean", "source"]
        blocks.append(f"{column.heading}\n{text_table(head, cells)}")
    unstated = any(row["set"] == "unstated" for row in rows)
    note = NOTE + (" unstated: validation or test, the source does not say." if unstated else "")
    return "\n\n".join([*blocks, note])


def _cells(row: dict[str, Any], column: Column) -> list[str]:
    """Return a row's values by split as published, and their mean; dashes if not known."""
    values = [row.get(split, {}).get(column.name) for split in _WHERE]
    texts = ["-" if v is None else str(v) for v in values]
    if values[-1] is None and None not in values[:-1]:
        texts[-1] = f"{np.mean(values[:-1]):.{column.digits}f}"
    return texts
