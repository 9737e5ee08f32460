"""A table of results: the splits, their mean, and the trivial predictor beside them.

Metrics are computed in eV; what is shown and written is in meV, as published.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from est_ocp.errors import DataError
from est_ocp.evaluation.metrics import NAMES, mean_row, metrics_of, trivial_predictions
from est_ocp.evaluation.predictions import SplitPredictions

#: Order of OC20's splits in tables; others follow by name.
SPLIT_ORDER = ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both")


@dataclass(frozen=True)
class Column:
    """How a metric is shown: heading, name in files, factor from eV or fractions, digits."""

    heading: str
    name: str
    factor: float
    digits: int

    def text(self, value: float) -> str:
        """Return a metric's value for a table."""
        return f"{self.factor * value:.{self.digits}f}"


COLUMNS = {
    "energy_mae": Column("energy MAE (meV)", "energy_mae_meV", 1000.0, 1),
    "forces_mae": Column("force MAE (meV/Å)", "forces_mae_meV_per_A", 1000.0, 2),
    "forces_cosine": Column("force cosine", "forces_cosine", 1.0, 4),
    "ewt": Column("EwT (%)", "ewt_percent", 100.0, 2),
    "efwt": Column("EFwT (%)", "efwt_percent", 100.0, 2),
}


def ordered(splits: Mapping[str, SplitPredictions]) -> dict[str, SplitPredictions]:
    """Return the splits in OC20's order."""
    rank = {name: i for i, name in enumerate(SPLIT_ORDER)}
    return dict(sorted(splits.items(), key=lambda item: (rank.get(item[0], 99), item[0])))


@dataclass(frozen=True)
class Results:
    """Metrics by split.

    Attributes
    ----------
    task : {"s2ef", "is2re"}
    model, trivial : dict of str to dict
        Split (or ``mean``) to metrics (eV, eV/Angstrom, fractions); ``trivial`` predicts the
        training set's mean energy and no forces, and is empty where that mean is not known.
    sizes : dict of str to int
        Structures of each split.
    """

    task: str
    model: dict[str, dict[str, float]]
    trivial: dict[str, dict[str, float]]
    sizes: dict[str, int]

    @classmethod
    def of(
        cls, splits: Mapping[str, SplitPredictions], train_mean_energy: float | None = None
    ) -> Results:
        """Compute the metrics of all splits.

        Raises
        ------
        DataError
            If there is no split, a split has no labels, or some have forces and others not.
        """
        splits = ordered(splits)
        tasks = {p.task for p in splits.values()}
        if len(tasks) != 1:
            raise DataError(
                "these predictions are of different tasks: some have forces, some not"
                if tasks
                else "there are no predictions to evaluate"
            )
        model = {name: _metrics_of_split(name, p) for name, p in splits.items()}
        trivial = {}
        if train_mean_energy is not None:
            trivial = {
                name: metrics_of(trivial_predictions(p, train_mean_energy))
                for name, p in splits.items()
            }
        for table in (model, trivial):
            if table:
                table["mean"] = mean_row(list(table.values()))
        return cls(tasks.pop(), model, trivial, {name: len(p) for name, p in splits.items()})

    @property
    def columns(self) -> dict[str, Column]:
        """Metric to how it is shown, in the order of the table."""
        return {name: COLUMNS[name] for name in NAMES[self.task]}

    def size(self, split: str) -> int:
        """Return the number of structures of a split, or of all for ``mean``."""
        return self.sizes.get(split, sum(self.sizes.values()))

    def rows(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Return heading, cells and kind (``""``, ``strong``, ``faint``) of each row."""
        columns = self.columns
        head = ["split", "structures", *(column.heading for column in columns.values())]
        cells, kinds = [], []
        for name, metrics in self.model.items():
            texts = [column.text(metrics[n]) for n, column in columns.items()]
            cells.append([name, str(self.size(name)), *texts])
            kinds.append("strong" if name == "mean" else "")
            if name in self.trivial:
                texts = [column.text(self.trivial[name][n]) for n, column in columns.items()]
                cells.append(["  trivial predictor", "", *texts])
                kinds.append("faint")
        return head, cells, kinds

    def text(self) -> str:
        """Return the table for a terminal."""
        head, cells, _ = self.rows()
        return text_table(head, cells)

    def in_units(self) -> dict[str, Any]:
        """Return what files hold: values in the units that their names end in.

        Returns
        -------
        dict
            ``task``, ``sizes``, and ``model`` and ``trivial`` with a mapping for each split and
            the mean.
        """
        return {
            "task": self.task,
            "sizes": self.sizes,
            **{
                predictor: {
                    split: {c.name: c.factor * metrics[n] for n, c in self.columns.items()}
                    for split, metrics in table.items()
                }
                for predictor, table in (("model", self.model), ("trivial", self.trivial))
            },
        }

    def write_csv(self, path: Path) -> None:
        """Write one row for each split and predictor, in the units of the table."""
        content = self.in_units()
        names = [column.name for column in self.columns.values()]
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["split", "predictor", "structures", *names])
            for predictor in ("model", "trivial"):
                for split, metrics in content[predictor].items():
                    values = [metrics[name] for name in names]
                    writer.writerow([split, predictor, self.size(split), *values])


def _metrics_of_split(name: str, predictions: SplitPredictions) -> dict[str, float]:
    try:
        return metrics_of(predictions)
    except DataError as error:
        raise DataError(f"the split '{name}': {error}") from None


def text_table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal: the first column to the left, the others to the right."""
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
