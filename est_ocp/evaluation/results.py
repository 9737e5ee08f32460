"""A table of results: the splits, their mean, and the trivial predictor beside them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from est_ocp.evaluation.metrics import (
    LABELS,
    NAMES,
    mean_row,
    s2ef_metrics,
    trivial_predictions,
)
from est_ocp.evaluation.predictions import SplitPredictions

#: Order of OC20's splits in tables; others follow by name.
SPLIT_ORDER = ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both")
_PERCENT = ("ewt", "efwt")


def ordered(splits: Mapping[str, SplitPredictions]) -> dict[str, SplitPredictions]:
    """Return the splits in OC20's order."""
    rank = {name: i for i, name in enumerate(SPLIT_ORDER)}
    return dict(sorted(splits.items(), key=lambda item: (rank.get(item[0], 99), item[0])))


@dataclass(frozen=True)
class Results:
    """Metrics by split.

    Attributes
    ----------
    model, trivial : dict of str to dict
        Split (or ``mean``) to metrics; ``trivial`` predicts the training set's mean energy and no
        forces.
    sizes : dict of str to int
        Structures of each split.
    """

    model: dict[str, dict[str, float]]
    trivial: dict[str, dict[str, float]]
    sizes: dict[str, int]

    @classmethod
    def of(cls, splits: Mapping[str, SplitPredictions], train_mean_energy: float) -> Results:
        """Compute the metrics of all splits."""
        splits = ordered(splits)
        model = {name: s2ef_metrics(p) for name, p in splits.items()}
        trivial = {
            name: s2ef_metrics(trivial_predictions(p, train_mean_energy))
            for name, p in splits.items()
        }
        for table in (model, trivial):
            table["mean"] = mean_row(list(table.values()))
        return cls(model, trivial, {name: len(p) for name, p in splits.items()})

    def rows(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Return heading, cells and kind (``""``, ``strong``, ``faint``) of each row."""
        head = ["split", "structures"]
        head += [f"{LABELS[n][0]}" + (f" ({LABELS[n][1]})" if LABELS[n][1] else "") for n in NAMES]
        cells, kinds = [], []
        for name, metrics in self.model.items():
            size = self.sizes.get(name, sum(self.sizes.values()))
            cells.append([name, str(size), *(_text(n, metrics[n]) for n in NAMES)])
            kinds.append("strong" if name == "mean" else "")
            trivial = self.trivial[name]
            cells.append(["  trivial predictor", "", *(_text(n, trivial[n]) for n in NAMES)])
            kinds.append("faint")
        return head, cells, kinds

    def text(self) -> str:
        """Return the table for a terminal."""
        head, cells, _ = self.rows()
        widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
        lines = []
        for row in [head, *cells]:
            first, *others = row
            lines.append(
                first.ljust(widths[0])
                + "".join(f"  {c:>{w}}" for c, w in zip(others, widths[1:], strict=True))
            )
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join(lines)

    def write_csv(self, path: Path) -> None:
        """Write one row for each split and predictor."""
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["split", "predictor", "structures", *NAMES])
            for predictor, table in (("model", self.model), ("trivial", self.trivial)):
                for split, metrics in table.items():
                    size = self.sizes.get(split, sum(self.sizes.values()))
                    writer.writerow([split, predictor, size, *(metrics[n] for n in NAMES)])


def _text(name: str, value: float) -> str:
    return f"{100 * value:.2f}" if name in _PERCENT else f"{value:.4f}"
