"""The splits of a joined dataset: names, order, identifiers, and what fits a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset

from est_ocp.data import OC20LmdbDataset
from est_ocp.data.record_index import RecordIndex, first_duplicate, record_index
from est_ocp.errors import CheckpointError, DataError
from est_ocp.evaluation.checkpoint import find_inference_checkpoint, read_checkpoint
from est_ocp.evaluation.stamp import checkpoint_stamp, data_stamp
from est_ocp.evaluation.task import DESCRIPTIONS


def splits_of(dataset: Any) -> dict[str, int]:
    """Return the names of a joined dataset's splits and their numbers in it."""
    names = split_names(dataset.dataset_names)
    return {names[name]: number for number, name in enumerate(dataset.dataset_names)}


def split_names(names: Iterable[str]) -> dict[str, str]:
    """Return each dataset's split: ``oc20.val_id`` is ``val_id`` where all share ``oc20.``."""
    names = sorted(names)
    shared = all("." in name for name in names) and len({n.split(".", 1)[0] for n in names}) == 1
    return {name: name.split(".", 1)[1] if shared else name for name in names}


def stamps_of(dataset: Any, checkpoint: str | Path, free_atoms_only: bool) -> dict[str, Any]:
    """Return the stamp that each split's predictions of a checkpoint have.

    Raises
    ------
    CheckpointError
        If the checkpoint cannot be read, or is of the other task than the data.
    """
    file = find_inference_checkpoint(checkpoint)
    model = checkpoint_stamp(file, read_checkpoint(file).tasks_config)
    stamps = {}
    for split, number in splits_of(dataset).items():
        check_task(dataset.datasets[number], split, model["task"], file)
        data = data_stamp(dataset.datasets[number])
        stamps[split] = {"checkpoint": model, "data": data, "free_atoms_only": free_atoms_only}
    return stamps


def check_task(dataset: Any, split: str, task: str, checkpoint: Path) -> None:
    """Refuse data of the other task than the checkpoint's."""
    data_task = task_of_dataset(dataset)
    if data_task not in (None, task):
        hint = "; est-ocp relax reaches relaxed energies with it" if task == "s2ef" else ""
        raise CheckpointError(
            f"{checkpoint} predicts {DESCRIPTIONS[task]}, but the split '{split}' holds "
            f"{data_task.upper()} data; name a config of the checkpoint's task{hint}"
        )


def task_of_dataset(dataset: Any) -> str | None:
    """Return OC20's task that a dataset's labels are of; None where it does not say."""
    return getattr(_base(dataset), "task", None)


def check_ids(split: str, dataset: Any) -> None:
    """Refuse a split of OC20's LMDBs in which an identifier occurs twice."""
    index = index_of(dataset)
    found = first_duplicate(index.ids) if index is not None else None
    if found is not None:
        samples, shards = sample_numbers(dataset), _base(dataset).shards
        a, b = (shards.describe(int(samples[i])) for i in found)
        raise DataError(
            f"the id '{index.ids[found[0]]}' occurs twice in the split '{split}': {a} and {b}; "
            "remove one of them"
        )


def index_of(dataset: Any) -> RecordIndex | None:
    """Return the record index of a split of OC20's LMDBs, in the order of its files, else None."""
    base = _base(dataset)
    if not isinstance(base, OC20LmdbDataset):
        return None
    index = record_index(base.shards, base.task)
    chosen = sample_numbers(dataset)
    return RecordIndex(index.ids[chosen], index.natoms[chosen], index.nfree[chosen])


def sample_numbers(dataset: Any) -> np.ndarray:
    """Return the numbers of a split's structures in its files, ascending [n]."""
    return np.sort(dataset.indices) if isinstance(dataset, Subset) else np.arange(len(dataset))


def check_unique(split: str, ids: np.ndarray) -> None:
    """Refuse identifiers of which one occurs twice."""
    found = first_duplicate(ids)
    if found is not None:
        raise DataError(
            f"the id '{ids[found[0]]}' occurs twice in the split '{split}'; give every structure "
            "its own sid"
        )


def in_file_order(dataset: Any, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one split's positions in a joined dataset, and its numbers in its own files.

    fairchem shuffles every split once; both are in the order of the files.
    """
    split = dataset.datasets[number]
    start = dataset.cumulative_sizes[number - 1] if number else 0
    samples = np.asarray(split.indices) if isinstance(split, Subset) else np.arange(len(split))
    order = np.argsort(samples, kind="stable")
    return start + order, samples[order]


def _base(dataset: Any) -> Any:
    return dataset.dataset if isinstance(dataset, Subset) else dataset
