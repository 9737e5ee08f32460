"""``est-ocp evaluate`` for checkpoints of QM9's targets."""

from __future__ import annotations

import argparse
from pathlib import Path

from est_ocp.errors import ConfigError


def run(arguments: argparse.Namespace) -> int:
    """Predict validation and test sets, save, and print the errors."""
    from est_ocp.cli.config import resolve
    from est_ocp.cli.prediction_job import RUN_CONFIG, default_folder
    from est_ocp.evaluation.checkpoint import run_dir_of
    from est_ocp.evaluation.molecules import evaluate_molecules

    refused = {
        "--free-atoms-only": arguments.free_atoms_only,
        "--plots": arguments.plots,
        "--published": arguments.published,
    }
    for option, given in refused.items():
        if given:
            raise ConfigError(f"{option} is for OC20's tasks; this checkpoint predicts molecules")
    config = arguments.config
    if config is None:
        run_dir = run_dir_of(arguments.checkpoint)
        if run_dir is None:
            raise ConfigError(
                f"{arguments.checkpoint} does not lie in a run's folder; name --config"
            )
        config = run_dir / RUN_CONFIG
    out = Path(arguments.out or default_folder(arguments.checkpoint))
    errors = evaluate_molecules(
        arguments.checkpoint, resolve(config, arguments.overrides), out, arguments.splits
    )
    print("\n\n".join(found.text() for found in errors.values()))
    return 0
