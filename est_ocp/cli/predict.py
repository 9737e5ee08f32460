"""``est-ocp predict``: predictions without metrics, for structures without labels too."""

from __future__ import annotations

import argparse
from pathlib import Path

from est_ocp.cli.prediction_job import (
    PredictionJob,
    add_job_arguments,
    default_folder,
    separate_overrides,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    add_job_arguments(parser, required=True)
    parser.add_argument("--out", help="folder for <split>.npz (default: <run>/results/predictions)")
    parser.add_argument(
        "--free-atoms-only", action="store_true", help="leave fixed atoms out of the saved forces"
    )


def run(arguments: argparse.Namespace) -> int:
    """Predict what is missing and name the files."""
    separate_overrides(arguments)
    job = PredictionJob.of(
        arguments.checkpoint,
        arguments.config,
        arguments.overrides,
        arguments.splits,
        prefer_test=True,
        free_atoms_only=arguments.free_atoms_only,
    )
    folder = Path(arguments.out).resolve() if arguments.out else default_folder(job.checkpoint)
    job.run(folder)
    width = max(map(len, job.splits))
    for split in job.splits:
        print(f"{split:<{width}}  {folder / f'{split}.npz'}")
    return 0
