"""``est-ocp evaluate``: predictions and metrics of a checkpoint on the validation splits."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from est_ocp.errors import ConfigError

#: Beside the npz files: the checkpoint that they come from, and their names.
CHECKPOINT_FILE = "checkpoint.json"


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
    stamp = checkpoint_stamp(file)
    splits = _launch(config, overrides or [], file, out, free_atoms_only)
    stamp["splits"] = splits
    (out / CHECKPOINT_FILE).write_text(json.dumps(stamp, indent=2) + "\n")
    results = Results.of(load_predictions(out, splits), train_mean_energy(tasks))
    results.write_csv(out / "metrics.csv")
    (out / "metrics.json").write_text(json.dumps(results.in_units(), indent=2) + "\n")
    return results


def checkpoint_stamp(file: Path) -> dict[str, Any]:
    """Return what tells a checkpoint file from a later one."""
    status = file.stat()
    return {
        "checkpoint": str(file.resolve()),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }


def evaluated_splits(folder: Path, checkpoint: Path) -> list[str] | None:
    """Return the splits in a folder that this very checkpoint predicted; None if it did not."""
    try:
        stamp = json.loads((folder / CHECKPOINT_FILE).read_text())
        splits = stamp.pop("splits")
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    current = stamp == checkpoint_stamp(checkpoint)
    complete = all((folder / f"{split}.npz").is_file() for split in splits)
    return splits if current and complete else None


def _launch(
    config: str | Path, overrides: list[str], checkpoint: Path, out: Path, free_atoms_only: bool
) -> list[str]:
    """Run :class:`est_ocp.evaluation.PredictRunner` on the config's validation data.

    Files of an earlier evaluation stay until this one has succeeded, and then only those of the
    same splits are replaced. Returns the splits.
    """
    from est_ocp.cli.config import instantiate, resolve

    cfg = resolve(config, overrides)
    if cfg.job.scheduler.mode != "local":
        raise ConfigError(
            "evaluation on SLURM goes through fairchem itself: "
            "fairchem --config configs/s2ef/predict.yml cluster=slurm_a100 checkpoint=..."
        )
    instantiate(cfg.runner.eval_dataloader.dataset, "the validation data")
    (out / "logs").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as partial:
        _predict_into(partial, cfg, checkpoint, out / "logs", free_atoms_only)
        files = sorted(Path(partial).glob("*.npz"))
        (out / CHECKPOINT_FILE).unlink(missing_ok=True)
        for file in files:
            file.replace(out / file.name)
    return [file.stem for file in files]


def _predict_into(
    folder: str, cfg: Any, checkpoint: Path, logs: Path, free_atoms_only: bool
) -> None:
    """Launch the runner that writes ``<split>.npz`` into a folder."""
    from fairchem.core.common import distutils
    from fairchem.core.launchers.slurm_launch import local_launch
    from omegaconf import OmegaConf, open_dict

    from est_ocp.evaluation.checkpoint import quiet

    with open_dict(cfg):
        cfg.job.logger = None
        cfg.runner = OmegaConf.create(
            {
                "_target_": "est_ocp.evaluation.PredictRunner",
                "dataloader": cfg.runner.eval_dataloader,
                "checkpoint": str(checkpoint),
                "output_dir": folder,
                "free_atoms_only": free_atoms_only,
            }
        )
        cfg.job.metadata.log_dir = str(logs)
    distutils.cleanup()
    with quiet():
        local_launch(cfg, str(logs))
