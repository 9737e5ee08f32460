"""``est-ocp evaluate``: predictions and metrics of a checkpoint on the validation splits."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from est_ocp.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="inference_ckpt.pt, a folder checkpoints/step_N, or a run's folder (newest one)",
    )
    parser.add_argument(
        "--config",
        help="training config whose validation data to use (the checkpoint's own run by default)",
    )
    parser.add_argument(
        "--out", help="folder for <split>.npz and metrics (default: <run>/results/predictions)"
    )
    parser.add_argument(
        "--free-atoms-only", action="store_true", help="leave fixed atoms out of the saved forces"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        help="Hydra overrides, e.g. job.scheduler.ranks_per_node=2; with --config also "
        "data.root=/oc20 and other short keys, which a run's own resolved config no longer has",
    )


def run(arguments: argparse.Namespace) -> int:
    """Predict, save, and print the table."""
    results = evaluate(
        arguments.checkpoint,
        arguments.config,
        arguments.out,
        arguments.overrides,
        free_atoms_only=arguments.free_atoms_only,
    )
    print(results.text())
    return 0


def evaluate(
    checkpoint: str | Path,
    config: str | Path | None = None,
    out: str | Path | None = None,
    overrides: list[str] | None = None,
    free_atoms_only: bool = False,
) -> Any:
    """Predict the validation splits of a config with a checkpoint, through fairchem's launcher.

    Parameters
    ----------
    checkpoint : path
        As for :func:`est_ocp.evaluation.find_inference_checkpoint`.
    config : path, optional
        Training config; default: the one saved with the checkpoint's run.
    out : path, optional
        Folder of the npz files, ``metrics.csv`` and ``metrics.json``.
    overrides : list of str, optional
        Hydra overrides of the config.
    free_atoms_only : bool
        Save forces of free atoms only.

    Returns
    -------
    Results
        Of all splits that have labels.
    """
    from est_ocp.evaluation.checkpoint import (
        find_inference_checkpoint,
        read_checkpoint,
        run_dir_of,
    )
    from est_ocp.evaluation.report import load_predictions, train_mean_energy
    from est_ocp.evaluation.results import Results

    file = find_inference_checkpoint(checkpoint).resolve()
    tasks = read_checkpoint(file).tasks_config
    run_dir = run_dir_of(file)
    if config is None:
        if run_dir is None:
            raise ConfigError(f"{file} does not lie in a run's folder; name --config")
        config = run_dir / "canonical_config.yaml"
    if out is None:
        out = (run_dir or Path.cwd()) / "results" / "predictions"
    out = Path(out).resolve()
    _launch(config, overrides or [], file, out, free_atoms_only)
    results = Results.of(load_predictions(out), train_mean_energy(tasks))
    results.write_csv(out / "metrics.csv")
    (out / "metrics.json").write_text(json.dumps(results.model, indent=2) + "\n")
    return results


def _launch(
    config: str | Path, overrides: list[str], checkpoint: Path, out: Path, free_atoms_only: bool
) -> None:
    """Run :class:`est_ocp.evaluation.PredictRunner` on the config's validation data."""
    from fairchem.core.common import distutils
    from fairchem.core.launchers.slurm_launch import local_launch
    from omegaconf import OmegaConf, open_dict

    from est_ocp.cli.config import resolve
    from est_ocp.evaluation.checkpoint import quiet

    cfg = resolve(config, overrides)
    if cfg.job.scheduler.mode != "local":
        raise ConfigError(
            "evaluation on SLURM goes through fairchem itself: "
            "fairchem --config configs/s2ef/predict.yml cluster=slurm_a100 checkpoint=..."
        )
    with open_dict(cfg):
        cfg.job.logger = None
        cfg.runner = OmegaConf.create(
            {
                "_target_": "est_ocp.evaluation.PredictRunner",
                "dataloader": cfg.runner.eval_dataloader,
                "checkpoint": str(checkpoint),
                "output_dir": str(out),
                "free_atoms_only": free_atoms_only,
            }
        )
        cfg.job.metadata.log_dir = str(out / "logs")
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.npz"):
        old.unlink()
    (out / "logs").mkdir(exist_ok=True)
    distutils.cleanup()
    with quiet():
        local_launch(cfg, str(out / "logs"))
