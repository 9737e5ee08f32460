"""``est-ocp submission``: leaderboard files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from est_ocp.cli.prediction_job import (
    PredictionJob,
    add_job_arguments,
    data_of,
    default_folder,
    separate_overrides,
)
from est_ocp.errors import ConfigError, DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = actions.add_parser(
        "make",
        help="write a file from predictions of the four test splits",
        description="Write a leaderboard file, from saved predictions or from a checkpoint.",
    )
    add_job_arguments(make, required=False)
    make.add_argument(
        "--predictions",
        metavar="FOLDER",
        help="folder of test_id.npz, test_ood_ads.npz, test_ood_cat.npz, test_ood_both.npz; with "
        "--checkpoint, where they go (default: <run>/results/predictions)",
    )
    make.add_argument("--out", required=True, help="the file to write, ending in .npz")
    make.add_argument(
        "--forces",
        choices=["all", "free"],
        default="all",
        help="atoms whose forces are written, for S2EF (%(default)s)",
    )
    make.add_argument(
        "--ids",
        choices=["sid_fid", "sid"],
        help="identifiers of S2EF's frames (default: sid_fid); IS2RE always has sid",
    )
    check = actions.add_parser(
        "check",
        help="check a file",
        description="Check a leaderboard file, with --config also against the data.",
    )
    check.add_argument("file", help="the .npz")
    check.add_argument("--config", help="config whose data's test splits to compare with")
    check.add_argument("--forces", choices=["all", "free"], help="atoms that it must be of")
    check.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. data.root=/oc20")
    for sub in (make, check):
        sub.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show tracebacks of errors",
        )


def run(arguments: argparse.Namespace) -> int:
    """Write a file or check one, and print what it holds."""
    if arguments.action == "check":
        from est_ocp.evaluation.submission_check import check_submission

        indexes, task = None, None
        if arguments.config is not None:
            data = data_of_test_splits(arguments.config, arguments.overrides)
            indexes, task = indexes_of(data), task_of_data(data)
        found = check_submission(arguments.file, indexes, arguments.forces, task=task)
        _print(arguments.file, found)
        return 0
    separate_overrides(arguments)
    if arguments.splits:
        raise ConfigError("a leaderboard file needs all four test splits; leave --splits out")
    return _make(arguments)


def _make(arguments: argparse.Namespace) -> int:
    from est_ocp.evaluation.predictions import SplitPredictions
    from est_ocp.evaluation.submission import write_submission
    from est_ocp.evaluation.submission_check import SPLITS

    if arguments.checkpoint is None and arguments.predictions is None:
        raise ConfigError("name --predictions, or --checkpoint and --config")
    names = {split: f"test_{split}" for split in SPLITS}
    data: Mapping[str, Any] | None = None
    if arguments.checkpoint is not None:
        job = PredictionJob.of(
            arguments.checkpoint, arguments.config, arguments.overrides, list(names.values())
        )
        folder = Path(arguments.predictions or default_folder(job.checkpoint)).resolve()
        job.run(folder)
    else:
        folder = Path(arguments.predictions)
    if arguments.config is not None:
        data = data_of_test_splits(arguments.config, arguments.overrides)
    else:
        data = _data_of_predictions(folder, names)
    files = {split: folder / f"{name}.npz" for split, name in names.items()}
    missing = [file for file in files.values() if not file.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]} is not there; `est-ocp predict` writes it, and a leaderboard file needs "
            "all four test splits"
        )
    splits = {split: SplitPredictions.load(file) for split, file in files.items()}
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    indexes = indexes_of(data) if data else None
    task = task_of_data(data) if data else None
    found = write_submission(out, splits, indexes, arguments.forces, arguments.ids, task)
    _print(out, found)
    return 0


def data_of_test_splits(config: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the datasets of a config's four test splits by their leaderboard names."""
    from est_ocp.evaluation.submission_check import SPLITS

    data = data_of(config, overrides, [f"test_{split}" for split in SPLITS], prefer_test=True)
    return {name.removeprefix("test_"): dataset for name, dataset in data.items()}


def indexes_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record indexes of datasets.

    Raises
    ------
    DataError
        If a dataset is not of OC20's LMDBs.
    """
    from est_ocp.evaluation.split_data import index_of

    indexes = {split: index_of(dataset) for split, dataset in data.items()}
    for split, index in indexes.items():
        if index is None:
            raise DataError(
                f"the data of the split '{split}' are not OC20's LMDBs, which alone a leaderboard "
                "file can be compared with"
            )
    return indexes


def task_of_data(data: Mapping[str, Any]) -> str | None:
    """Return OC20's task that datasets are of; None if they do not know."""
    from est_ocp.evaluation.split_data import task_of_dataset

    return next((task_of_dataset(dataset) for dataset in data.values()), None)


def _data_of_predictions(folder: Path, names: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the data that predictions were made of, where they are still there; else None."""
    from est_ocp.data import OC20LmdbDataset
    from est_ocp.evaluation.predictions import read_stamp

    data = {}
    for split, name in names.items():
        stamp = read_stamp(folder / f"{name}.npz") or {}
        made_of = stamp.get("data") or {}
        if made_of.get("class") != OC20LmdbDataset.__name__:
            return None
        if not Path(made_of["config"]["src"]).exists():
            return None
        data[split] = OC20LmdbDataset(made_of["config"])
    return data


def _print(path: str | Path, found: Mapping[str, Any]) -> None:
    from est_ocp.evaluation.results import text_table

    what = {"either": "all (none is fixed)", "none": "-"}
    rows = [
        [split, str(s.structures), str(s.vectors or "-"), what.get(s.forces, s.forces)]
        for split, s in found.items()
    ]
    print(text_table(["split", "structures", "force vectors", "atoms"], rows))
    compared = all(summary.compared for summary in found.values())
    has_forces = any(summary.vectors for summary in found.values())
    agree = "ids are unique and complete"
    agree += ", numbers of atoms agree with the data" if has_forces else ""
    how = (
        agree
        if compared
        else "not compared with the data: name --config to check that ids are complete"
    )
    print(f"{path}: a valid leaderboard file; {how}")
