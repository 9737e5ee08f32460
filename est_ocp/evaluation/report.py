"""The report of a run: table, figures, JSON, CSV and one HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from est_ocp.errors import DataError
from est_ocp.evaluation import figures, page
from est_ocp.evaluation.checkpoint import find_inference_checkpoint, read_checkpoint
from est_ocp.evaluation.equivariance import EquivarianceErrors, measure
from est_ocp.evaluation.machine import machine_info
from est_ocp.evaluation.predictions import SplitPredictions
from est_ocp.evaluation.results import Results, ordered
from est_ocp.evaluation.stamp import train_mean_energy
from est_ocp.training import metrics_file


@dataclass
class Report:
    """What a report shows.

    Attributes
    ----------
    run_dir : Path
        The run.
    splits : dict of str to SplitPredictions
        Labelled predictions.
    train_mean_energy : float
        Of the trivial predictor, eV.
    parameters : int
        Size of the model.
    history : list of dict
        Rows of ``metrics.jsonl``.
    equivariance : list of EquivarianceErrors
        Empty where it was not measured.
    commands : list of str
        Command lines that repeat the run.
    note : str
        Where the labels come from and the like.
    """

    run_dir: Path
    splits: dict[str, SplitPredictions]
    train_mean_energy: float
    parameters: int
    history: list[dict[str, Any]]
    equivariance: list[EquivarianceErrors] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    note: str = ""

    @cached_property
    def results(self) -> Results:
        """Metrics of the splits."""
        return Results.of(self.splits, self.train_mean_energy)

    def write(self, folder: str | Path) -> Path:
        """Write everything into a folder and return the page's path."""
        folder = Path(folder)
        figures.pyplot()
        folder.mkdir(parents=True, exist_ok=True)
        results = self.results
        results.write_csv(folder / "metrics.csv")
        (folder / "report.json").write_text(json.dumps(self._json(results), indent=2) + "\n")
        drawn = self._draw(folder)
        target = folder / "index.html"
        target.write_text(self._page(results, drawn))
        return target

    def training_summary(self) -> dict[str, float]:
        """Return steps, time, speed and the last loss, as far as they were logged."""
        train = [row for row in self.history if row["kind"] == "train"]
        if not train:
            return {}
        speeds = sorted(row["samples_per_second"] for row in train)
        return {
            "steps": max(row["step"] for row in self.history),
            "seconds": max(row.get("seconds", 0.0) for row in self.history),
            "samples_per_second": speeds[len(speeds) // 2],
            "last_loss": train[-1]["loss"],
        }

    def _json(self, results: Results) -> dict[str, Any]:
        return {
            "run": str(self.run_dir),
            "parameters": self.parameters,
            "note": self.note,
            "training": self.training_summary(),
            **results.in_units(),
            "train_mean_energy": self.train_mean_energy,
            "equivariance": {e.dtype: e.summary() for e in self.equivariance},
            "commands": self.commands,
            "machine": machine_info(),
        }

    def _draw(self, folder: Path) -> dict[str, Path]:
        drawn = {"parity": folder / "parity.png"}
        figures.parity(ordered(self.splits), drawn["parity"])
        if self.history:
            drawn["learning"] = folder / "learning_curve.png"
            figures.learning_curve(self.history, drawn["learning"])
        if self.equivariance:
            drawn["equivariance"] = folder / "equivariance.png"
            figures.equivariance(self.equivariance, drawn["equivariance"])
        return drawn

    def _page(self, results: Results, drawn: dict[str, Path]) -> str:
        head, cells, kinds = results.rows()
        sections = {
            "Validation": page.table(head, cells, kinds)
            + page.paragraph(_explanation(results.task, self.train_mean_energy), soft=True)
            + (page.paragraph(self.note, soft=True) if self.note else ""),
            "Training": self._training_section(drawn),
            "Predictions against labels": page.figure(
                drawn["parity"],
                "Axes cut at the 0.5th and 99.5th percentile"
                + ("; forces of free atoms." if results.task == "s2ef" else "."),
            ),
            "Equivariance": self._equivariance_section(drawn),
            "How to repeat it": page.commands(self.commands) if self.commands else "",
            "Machine": page.table(
                ["", ""], [[k, v] for k, v in {**machine_info(), "run": str(self.run_dir)}.items()]
            ),
        }
        summary = self.training_summary()
        subtitle = f"{self.parameters:,} parameters"
        if summary:
            subtitle += f", {summary['steps']:,} steps in {summary['seconds']:.0f} s"
        return page.page(f"est-ocp: {self.run_dir.name}", subtitle, sections)

    def _training_section(self, drawn: dict[str, Path]) -> str:
        if "learning" not in drawn:
            return ""
        summary = self.training_summary()
        text = ""
        if summary:
            text = page.paragraph(
                f"{summary['samples_per_second']:.1f} structures a second (median), last loss "
                f"{summary['last_loss']:.3f}."
            )
        return text + page.figure(drawn["learning"], "Training loss, and evaluations on the way.")

    def _equivariance_section(self, drawn: dict[str, Path]) -> str:
        if "equivariance" not in drawn:
            return ""
        rows = [[e.dtype, *(f"{v:.1e}" for v in e.summary().values())] for e in self.equivariance]
        names = self.equivariance[0].summary()
        head = ["precision", *(name.replace("_", ", ") for name in names)]
        return (
            page.paragraph(
                "The trained model (averaged weights) on validation structures whose positions "
                "and cell are rotated at random: relative change against the rotated prediction. "
                "What remains in float64 comes from the finite number of points on the sphere."
            )
            + page.table(head, rows)
            + page.figure(drawn["equivariance"], "One count for each structure and rotation.")
        )


def _explanation(task: str, train_mean_energy: float) -> str:
    """Return the sentences under the table of metrics."""
    forces = task == "s2ef"
    return (
        ("Force errors are over free atoms. " if forces else "Energies are of relaxed structures. ")
        + "EwT: energy error below 0.02 eV"
        + ("; EFwT: and all force components within 0.03 eV/Å" if forces else "")
        + f". The trivial predictor gives the training set's mean energy ({train_mean_energy:.3f} "
        + ("eV) and no forces." if forces else "eV).")
    )


def load_predictions(
    folder: str | Path, names: Sequence[str] | None = None
) -> dict[str, SplitPredictions]:
    """Read the labelled splits' npz files in a folder, or those named.

    Raises
    ------
    DataError
        If there is none, a named one is missing, or a named one has no labels.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.npz"))
    if names is not None:
        files = [folder / f"{name}.npz" for name in names]
        missing = [file.stem for file in files if not file.is_file()]
        if missing:
            raise DataError(f"{folder} holds no predictions of the split '{missing[0]}'")
    if not files:
        raise DataError(f"{folder} holds no predictions; run `est-ocp evaluate` first")
    splits = {file.stem: SplitPredictions.load(file) for file in files}
    labelled = {name: p for name, p in splits.items() if p.energy_label is not None}
    if not labelled or (names is not None and len(labelled) < len(splits)):
        bare = next(name for name in splits if name not in labelled)
        raise DataError(f"the split '{bare}' in {folder} has no labels, so it has no metrics")
    return labelled


def build_report(
    run_dir: str | Path,
    predictions: str | Path,
    checkpoint: str | Path | None = None,
    batch: Any | None = None,
    commands: list[str] | None = None,
    note: str = "",
    num_rotations: int = 4,
    split_names: Sequence[str] | None = None,
) -> Report:
    """Collect what a report shows from a run.

    Parameters
    ----------
    run_dir : path
        The run, for ``metrics.jsonl`` and its checkpoint.
    predictions : path
        Folder of npz files.
    checkpoint : path, optional
        Default: the run's newest.
    batch : AtomicData, optional
        Structures on which to measure equivariance; None leaves it out.
    commands : list of str, optional
    note : str
    num_rotations : int
        For the equivariance.
    split_names : sequence of str, optional
        Which npz files to report on; default: all in the folder.
    """
    run_dir = Path(run_dir)
    splits = load_predictions(predictions, split_names)
    file = find_inference_checkpoint(checkpoint or run_dir)
    content = read_checkpoint(file)
    errors = []
    if batch is not None:
        errors = [
            measure(str(file), batch, num_rotations, dtype)
            for dtype in (torch.float32, torch.float64)
        ]
    return Report(
        run_dir=run_dir,
        splits=splits,
        train_mean_energy=train_mean_energy(content.tasks_config),
        parameters=sum(t.numel() for t in _parameters(content)),
        history=metrics_file.read(run_dir / metrics_file.FILE_NAME),
        equivariance=errors,
        commands=commands or [],
        note=note,
    )


def _parameters(checkpoint: Any) -> list[torch.Tensor]:
    import hydra

    return list(hydra.utils.instantiate(checkpoint.model_config).parameters())
