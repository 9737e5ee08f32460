"""What predictions were made from: tells files that can be kept from those of other runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from est_ocp.evaluation.task import task_of

#: Parts of a stamp that do not change what is predicted.
_INFORMATION = ("file", "train_mean_energy")


def checkpoint_stamp(file: str | Path, tasks: Any) -> dict[str, Any]:
    """Return what identifies a checkpoint, by content: a copy elsewhere is the same one.

    Parameters
    ----------
    file : path
        An ``inference_ckpt.pt``.
    tasks : sequence of mapping
        Its ``tasks_config``.
    """
    return {
        "sha256": sha256(file),
        "file": str(Path(file).resolve()),
        "task": task_of(tasks),
        "train_mean_energy": train_mean_energy(tasks),
    }


def sha256(file: str | Path) -> str:
    """Return a file's SHA-256."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def data_stamp(dataset: Any) -> dict[str, Any]:
    """Return what identifies a split's data: settings, number of records, files' sizes and dates.

    Parameters
    ----------
    dataset : Dataset
        One split, as fairchem's ``create_dataset`` gives it.
    """
    base = dataset.dataset if isinstance(dataset, Subset) else dataset
    config = {str(k): _plain(v) for k, v in getattr(base, "config", {}).items()}
    shards = getattr(base, "shards", None)
    files = [file.stat() for file in shards.files] if shards is not None else []
    return {
        "class": type(base).__name__,
        "config": config,
        "records": len(dataset),
        "bytes": sum(file.st_size for file in files),
        "modified": max((file.st_mtime_ns for file in files), default=0),
    }


def same(a: Mapping[str, Any] | None, b: Mapping[str, Any]) -> bool:
    """Return whether two stamps stand for the same predictions."""
    if a is None or not isinstance(a.get("checkpoint"), Mapping):
        return False
    return _essential(a) == _essential(b)


def _essential(stamp: Mapping[str, Any]) -> dict[str, Any]:
    checkpoint = {k: v for k, v in stamp["checkpoint"].items() if k not in _INFORMATION}
    return {**stamp, "checkpoint": checkpoint}


def _plain(value: Any) -> Any:
    """Return a setting as JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def train_mean_energy(tasks: Any) -> float:
    """Return the mean of the energy task's normaliser, which is the training set's (eV).

    Parameters
    ----------
    tasks : sequence of mapping
        A checkpoint's ``tasks_config``.
    """
    for task in tasks:
        if task["name"] == "energy":
            return float(task["normalizer"]["mean"])
    return 0.0
