"""Choose splits of a config and predict them with a checkpoint: evaluate, predict, submission."""

from __future__ import annotations

import argparse
import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from est_ocp.errors import ConfigError, DataError, ESTError

#: A run's own resolved config.
RUN_CONFIG = "canonical_config.yaml"
#: Puts the test splits of a config's data in the place of its validation splits.
_TEST_SPLITS = "data.val=${data.test}"


def add_job_arguments(parser: argparse.ArgumentParser, required: bool) -> None:
    """Add the arguments that every command which predicts has."""
    parser.add_argument(
        "--checkpoint",
        required=required,
        help="inference_ckpt.pt, a folder checkpoints/step_N, or a run's folder (newest one)",
    )
    parser.add_argument(
        "--config",
        help="config whose data to use (default: that of the checkpoint's own run)",
    )
    parser.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help="only these, e.g. val_id val_ood_ads"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        help="Hydra overrides, e.g. job.scheduler.ranks_per_node=2; with --config also "
        "data.root=/oc20 and other short keys, which a run's own resolved config no longer has",
    )


def separate_overrides(arguments: argparse.Namespace) -> None:
    """Give overrides that follow the names after ``--splits`` their place."""
    words = arguments.splits or []
    arguments.overrides = [*arguments.overrides, *(word for word in words if "=" in word)]
    arguments.splits = [word for word in words if "=" not in word] or None


@dataclass
class PredictionJob:
    """Splits of data to be predicted with a checkpoint.

    Attributes
    ----------
    checkpoint : Path
        An ``inference_ckpt.pt``.
    config : DictConfig
        Resolved, with a ``PredictRunner`` for the chosen splits.
    dataset : ConcatDataset
        The chosen splits.
    splits : list of str
        Their names, in the config's order.
    """

    checkpoint: Path
    config: Any
    dataset: Any
    splits: list[str]

    @classmethod
    def of(
        cls,
        checkpoint: str | Path,
        config: str | Path | None = None,
        overrides: Sequence[str] = (),
        splits: Sequence[str] | None = None,
        prefer_test: bool = False,
        free_atoms_only: bool = False,
    ) -> PredictionJob:
        """Resolve the config, find the splits and open their files.

        Parameters
        ----------
        checkpoint : path
            As for :func:`est_ocp.evaluation.find_inference_checkpoint`.
        config : path, optional
            Training or prediction config; default: the one saved with the checkpoint's run.
        overrides : sequence of str
            Hydra overrides of the config.
        splits : sequence of str, optional
            Validation or test splits. Default: all validation splits.
        prefer_test : bool
            By default the test splits, where the config has some.
        free_atoms_only : bool
            Save forces of free atoms only.

        Raises
        ------
        ESTError
            If checkpoint, config or data cannot be used, or do not fit each other.
        """
        from est_ocp.cli.config import instantiate
        from est_ocp.cli.ranks import fit_ranks
        from est_ocp.evaluation.checkpoint import find_inference_checkpoint, run_dir_of
        from est_ocp.evaluation.split_data import splits_of, stamps_of

        file = find_inference_checkpoint(checkpoint).resolve()
        if config is None:
            run_dir = run_dir_of(file)
            if run_dir is None:
                raise ConfigError(f"{file} does not lie in a run's folder; name --config")
            config = run_dir / RUN_CONFIG
        resolved = _with_splits(config, list(overrides), splits, prefer_test)
        if resolved.job.scheduler.mode != "local":
            raise ConfigError(
                "prediction on SLURM goes through fairchem itself: fairchem --config "
                "configs/s2ef/predict.yml (or is2re) cluster=slurm_a100 checkpoint=...; then "
                "est-ocp evaluate --predictions FOLDER"
            )
        fit_ranks(resolved, overrides)
        loader = _loader_of(resolved, config)
        dataset = instantiate(loader.dataset, "the data")
        stamps_of(dataset, file, free_atoms_only)
        _set_runner(resolved, loader, file, free_atoms_only)
        return cls(file, resolved, dataset, list(splits_of(dataset)))

    def refuse_without_labels(self) -> None:
        """Refuse splits whose first structure has no label, before anything is predicted.

        Raises
        ------
        DataError
            Naming the split and ``est-ocp predict``.
        """
        from est_ocp.evaluation.split_data import splits_of
        from est_ocp.evaluation.task import checkpoint_task

        needed = ("energy", "forces") if checkpoint_task(self.checkpoint) == "s2ef" else ("energy",)
        for split, number in splits_of(self.dataset).items():
            first = self.dataset.datasets[number][0]
            missing = [name for name in needed if name not in first]
            if missing:
                raise DataError(
                    f"the split '{split}' has no labels ({' and '.join(missing)}), so there is "
                    "nothing to evaluate; `est-ocp predict` writes predictions without labels"
                )

    def run(self, out: Path) -> None:
        """Predict the splits that a folder does not hold yet, through fairchem's launcher."""
        from fairchem.core.common import distutils
        from fairchem.core.launchers.slurm_launch import local_launch

        from est_ocp.evaluation.checkpoint import quiet

        logs = out / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        ranks = self.config.job.scheduler.ranks_per_node
        error_file = logs / "error.txt"
        error_file.unlink(missing_ok=True)
        self.config.runner.output_dir = str(out)
        self.config.runner.error_file = str(error_file) if ranks > 1 else None
        self.config.job.metadata.log_dir = str(logs)
        handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
        distutils.cleanup()
        try:
            with quiet(logging.ERROR if ranks > 1 else logging.WARNING):
                local_launch(self.config, str(logs))
        except Exception as error:
            if ranks == 1:
                raise
            if error_file.is_file():
                raise DataError(error_file.read_text()) from error
            raise ESTError(
                f"one of the {ranks} processes ended ({' '.join(str(error).split())[-300:]}); what "
                "is complete is kept, and the same command goes on"
            ) from error
        finally:
            error_file.unlink(missing_ok=True)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def default_folder(checkpoint: str | Path) -> Path:
    """Return where predictions of a checkpoint go: below its run, else below this folder."""
    from est_ocp.evaluation.checkpoint import run_dir_of

    return ((run_dir_of(checkpoint) or Path.cwd()) / "results" / "predictions").resolve()


def data_of(
    config: str | Path, overrides: Sequence[str], splits: Sequence[str] | None, prefer_test: bool
) -> dict[str, Any]:
    """Return the datasets of a config's splits, by the name of the split."""
    from est_ocp.cli.config import instantiate
    from est_ocp.evaluation.split_data import splits_of

    resolved = _with_splits(config, list(overrides), splits, prefer_test)
    dataset = instantiate(_loader_of(resolved, config).dataset, "the data")
    return {split: dataset.datasets[number] for split, number in splits_of(dataset).items()}


def _with_splits(
    config: str | Path, overrides: list[str], wanted: Sequence[str] | None, prefer_test: bool
) -> Any:
    """Resolve a config with the wanted splits in its loader."""
    resolved = _resolve(config, overrides)
    names = _split_configs(resolved, config)
    if wanted is None and not prefer_test:
        return resolved
    if wanted is not None and set(wanted) <= set(names):
        return _keep(resolved, config, wanted)
    test = _test_config(config, overrides)
    if wanted is None:
        return resolved if test is None else test
    test_names = _split_configs(test, config) if test is not None else {}
    if set(wanted) <= set(test_names):
        return _keep(test, config, wanted)
    unknown = [name for name in wanted if name not in {*names, *test_names}]
    if unknown:
        has = f"{config} has no split '{unknown[0]}'; it has {', '.join([*names, *test_names])}"
        of_run = "; --config names other data" if Path(config).name == RUN_CONFIG else ""
        raise ConfigError(has + of_run)
    raise ConfigError("validation and test splits cannot be mixed; run the command for each")


def _test_config(config: str | Path, overrides: list[str]) -> Any | None:
    """Resolve a config with its data's test splits; None if it has none."""
    try:
        return _resolve(config, [*overrides, _TEST_SPLITS])
    except ConfigError as error:
        if "data.test" in str(error) or "data.val" in str(error):
            return None
        raise


def _resolve(config: str | Path, overrides: list[str]) -> Any:
    """Resolve a config; one for predictions demands ``checkpoint=``, which is named already."""
    from est_ocp.cli.config import resolve

    try:
        return resolve(config, overrides)
    except ConfigError as error:
        if "Missing mandatory value: checkpoint" not in str(error):
            raise
        return resolve(config, [*overrides, "checkpoint=null"])


def _loader_of(resolved: Any, config: str | Path) -> Any:
    """Return the node of the loader for evaluation."""
    runner = resolved.get("runner") or {}
    loader = runner.get("eval_dataloader") or runner.get("dataloader")
    if loader is None:
        raise ConfigError(f"{config} is neither a training nor a prediction config")
    return loader


def _split_configs(resolved: Any, config: str | Path) -> dict[str, Any]:
    """Return split names and the mappings that hold them."""
    entries = _loader_of(resolved, config).dataset.dataset_configs
    return {name: entry.splits for entry in entries.values() for name in entry.splits}


def _keep(resolved: Any, config: str | Path, wanted: Sequence[str]) -> Any:
    """Leave only the wanted splits in a resolved config."""
    from omegaconf import open_dict

    entries = _loader_of(resolved, config).dataset.dataset_configs
    with open_dict(resolved):
        for name, entry in list(entries.items()):
            entry.splits = {k: v for k, v in entry.splits.items() if k in wanted}
            if not entry.splits:
                del entries[name]
    return resolved


def _set_runner(resolved: Any, loader: Any, checkpoint: Path, free_atoms_only: bool) -> None:
    """Put a PredictRunner in the place of the config's runner."""
    from omegaconf import OmegaConf, open_dict

    with open_dict(resolved):
        loader.collate_fn.allow_missing_targets = True
        resolved.job.logger = None
        resolved.runner = OmegaConf.create(
            {
                "_target_": "est_ocp.evaluation.PredictRunner",
                "dataloader": loader,
                "checkpoint": str(checkpoint),
                "output_dir": None,
                "free_atoms_only": free_atoms_only,
                "error_file": None,
            }
        )
