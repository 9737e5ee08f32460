"""``est-ocp evaluate``: predictions and metrics of a checkpoint on the validation splits."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from est_ocp.cli.prediction_job import (
    PredictionJob,
    add_job_arguments,
    default_folder,
    separate_overrides,
)
from est_ocp.errors import ConfigError, DataError

#: Beside the npz files: their metrics, and the checkpoint that they come from.
METRICS_FILE = "metrics.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    add_job_arguments(parser, required=False)
    parser.add_argument(
        "--predictions",
        metavar="FOLDER",
        help="folder of <split>.npz that are already there: only compute metrics, without a model",
    )
    parser.add_argument(
        "--out", help="folder for <split>.npz and metrics (default: <run>/results/predictions)"
    )
    parser.add_argument(
        "--free-atoms-only", action="store_true", help="leave fixed atoms out of the saved forces"
    )
    parser.add_argument(
        "--plots", action="store_true", help="draw parity plots, parity.png (needs matplotlib)"
    )
    parser.add_argument(
        "--published", action="store_true", help="print published figures beside these"
    )


def run(arguments: argparse.Namespace) -> int:
    """Predict what is missing, save, and print the table."""
    separate_overrides(arguments)
    if (arguments.checkpoint is None) == (arguments.predictions is None):
        raise ConfigError("name one of --checkpoint and --predictions")
    if arguments.checkpoint is not None:
        from est_ocp.evaluation.molecules import target_of_checkpoint

        if target_of_checkpoint(arguments.checkpoint) is not None:
            from est_ocp.cli import evaluate_molecules

            return evaluate_molecules.run(arguments)
    if arguments.plots:
        from est_ocp.evaluation.figures import pyplot

        pyplot()
    if arguments.predictions is not None:
        folder = Path(arguments.predictions)
        results = summarize(folder, arguments.splits, arguments.out, plots=arguments.plots)
    else:
        results = evaluate(
            arguments.checkpoint,
            arguments.config,
            arguments.out,
            arguments.overrides,
            free_atoms_only=arguments.free_atoms_only,
            splits=arguments.splits,
            plots=arguments.plots,
        )
    print(results.text())
    if arguments.published:
        from est_ocp.evaluation.published import published_text

        print("\n" + published_text(results))
    return 0


def evaluate(
    checkpoint: str | Path,
    config: str | Path | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] | None = None,
    free_atoms_only: bool = False,
    splits: Sequence[str] | None = None,
    plots: bool = False,
) -> Any:
    """Predict the validation splits of a config with a checkpoint, through fairchem's launcher.

    Splits that were predicted before, with the same checkpoint and data, are not predicted again.

    Parameters
    ----------
    checkpoint : path
        As for :func:`est_ocp.evaluation.find_inference_checkpoint`.
    config : path, optional
        Training config; default: the one saved with the checkpoint's run.
    out : path, optional
        Folder of the npz files, ``metrics.csv`` and ``metrics.json``.
    overrides : sequence of str, optional
        Hydra overrides of the config.
    free_atoms_only : bool
        Save forces of free atoms only.
    splits : sequence of str, optional
        Default: all validation splits of the config.
    plots : bool
        Draw ``parity.png`` too.

    Returns
    -------
    Results
        Of these splits.

    Raises
    ------
    ESTError
        If checkpoint, config or data cannot be used, do not fit each other, or have no labels.
    """
    job = PredictionJob.of(
        checkpoint, config, overrides or (), splits, free_atoms_only=free_atoms_only
    )
    job.refuse_without_labels()
    folder = Path(out).resolve() if out is not None else default_folder(checkpoint)
    job.run(folder)
    return summarize(folder, job.splits, plots=plots)


def summarize(
    folder: str | Path,
    splits: Sequence[str] | None = None,
    out: str | Path | None = None,
    plots: bool = False,
) -> Any:
    """Compute the metrics of saved predictions and write them.

    Parameters
    ----------
    folder : path
        Of ``<split>.npz``.
    splits : sequence of str, optional
        Default: all in the folder.
    out : path, optional
        Where ``metrics.csv``, ``metrics.json`` and ``parity.png`` go; default: the folder.
    plots : bool

    Returns
    -------
    Results

    Raises
    ------
    DataError
        If there are no predictions, a split is missing, has no labels, or the splits come from
        different checkpoints.
    """
    from est_ocp.evaluation.predictions import read_stamp
    from est_ocp.evaluation.report import load_predictions
    from est_ocp.evaluation.results import Results, ordered

    folder = Path(folder)
    loaded = load_predictions(folder, splits)
    stamps = [read_stamp(folder / f"{split}.npz") or {} for split in loaded]
    models = [stamp.get("checkpoint") or {} for stamp in stamps]
    if len({model.get("sha256") for model in models}) > 1:
        raise DataError(
            f"the predictions in {folder} come from different checkpoints; choose among them with "
            "--splits, or predict them anew"
        )
    results = Results.of(loaded, models[0].get("train_mean_energy"))
    target = folder if out is None else Path(out)
    target.mkdir(parents=True, exist_ok=True)
    results.write_csv(target / "metrics.csv")
    content = {k: models[0].get(k) for k in ("file", "sha256")} | results.in_units()
    (target / METRICS_FILE).write_text(json.dumps(content, indent=2) + "\n")
    if plots:
        from est_ocp.evaluation.figures import parity

        parity(ordered(loaded), target / "parity.png")
        print(f"parity plots: {target / 'parity.png'}")
    return results


def evaluated_splits(folder: Path, checkpoint: Path) -> list[str] | None:
    """Return the splits of a folder's last evaluation if it was of this very checkpoint."""
    from est_ocp.evaluation.predictions import read_stamp
    from est_ocp.evaluation.stamp import sha256

    try:
        content = json.loads((folder / METRICS_FILE).read_text())
        splits, digest = list(content["sizes"]), content["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    stamps = [read_stamp(folder / f"{split}.npz") or {} for split in splits]
    found = {(stamp.get("checkpoint") or {}).get("sha256") for stamp in stamps}
    return splits if found == {digest} and digest == sha256(checkpoint) else None
