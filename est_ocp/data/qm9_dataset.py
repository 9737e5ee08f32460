"""QM9 in memory as a fairchem dataset, with whole batches cut out at once.

A molecule is small, so handling molecules one by one would cost more than the model's step. The
flat arrays of :mod:`est_ocp.data.qm9_lmdb` stay in memory instead (a few bytes an atom and edge;
forked loader workers share them), and a batch is a few selections of ranges.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairchem.core.common.registry import registry
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.datasets.base_dataset import BaseDataset
from fairchem.core.datasets.mt_concat_dataset import ConcatDataset

from est_ocp.data.collate import AUXILIARY_TASKS, TaskCollater
from est_ocp.data.loader import create_dataset
from est_ocp.data.qm9_edges import radius_edges
from est_ocp.data.qm9_lmdb import read_molecules, read_summary
from est_ocp.data.qm9_molecules import Molecules, composition
from est_ocp.data.qm9_tensors import MoleculeTensors
from est_ocp.data.shards import expand_path
from est_ocp.errors import ConfigError, unknown_keys
from est_ocp.qm9_targets import ALL, ELEMENTS, TARGETS, targets_of

#: Keys read here, and keys that fairchem's ``create_dataset`` reads from the same mapping.
OWN_KEYS = ("src", "target", "cutoff", "dataset_name", "means", "spreads")
FAIRCHEM_KEYS = ("format", "splits", "seed", "first_n", "sample_n", "no_shuffle")


@registry.register_dataset("qm9_lmdb")
class QM9Dataset(BaseDataset):
    """One split of QM9 with one target as label, or all of them.

    Labels of extensive targets are given less the references of ``qm9.json`` (one value an atom),
    in double precision: total energies in single precision would be rounded to 1 meV.
    :attr:`references` adds them again. All targets together are given as ``(label - mean) /
    spread``, in the order of :data:`est_ocp.qm9_targets.TARGETS`.

    Parameters
    ----------
    config : dict
        ``src`` : folder of ``data.lmdb`` as ``est-ocp data qm9`` writes it; ``qm9.json`` lies in
        its parent.
        ``target`` : name of the target, see :data:`est_ocp.qm9_targets.TARGETS`, or "all".
        ``means``, ``spreads`` : by name of the target, in its unit; used, and needed, with "all".
        ``cutoff`` : Angstrom; give the edges up to there with the structures. None: no edges.
        ``dataset_name`` : name by which tasks refer to this dataset (default "qm9").

    Raises
    ------
    ConfigError
        If a key is unknown or a value has no meaning.
    DataError
        If the files are missing or damaged.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        unknown_keys(config, OWN_KEYS + FAIRCHEM_KEYS, "dataset qm9_lmdb")
        src = config.get("src")
        if not isinstance(src, str | os.PathLike):
            raise ConfigError(f"src of dataset qm9_lmdb must be one folder, not {src!r}")
        self.targets = targets_of(config.get("target"))
        self.scaling = self._scaling(config) if config["target"] == ALL else None
        cutoff = config.get("cutoff")
        if cutoff is not None and not float(cutoff) > 0:
            raise ConfigError(f"cutoff of dataset qm9_lmdb must be positive, not {cutoff}")
        self.cutoff = None if cutoff is None else float(cutoff)
        self.dataset_name = config.get("dataset_name", "qm9")
        self.folder = Path(expand_path(src))
        super().__init__({**config, "src": str(self.folder)})
        self.molecules: Molecules = read_molecules(self.folder / "data.lmdb")
        self.num_samples = len(self.molecules)

    def _scaling(self, config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Means and spreads [12], float64."""
        found = []
        for key in ("means", "spreads"):
            values = config.get(key) or {}
            missing = [target.name for target in self.targets if target.name not in values]
            if missing:
                raise ConfigError(
                    f"{key} of dataset qm9_lmdb lacks {', '.join(missing)}; target 'all' needs a "
                    "number for each target"
                )
            found.append(np.array([values[target.name] for target in self.targets], dtype=float))
        if not np.all(found[1] > 0):
            raise ConfigError("spreads of dataset qm9_lmdb must be positive")
        return found[0], found[1]

    @cached_property
    def references(self) -> np.ndarray:
        """Sums of the references over each molecule's atoms, float64 [M] or [M, 12].

        In the targets' units.
        """
        sums = np.zeros((len(self.molecules), len(self.targets)))
        for column, target in enumerate(self.targets):
            if target.has_references:
                stored = read_summary(self.folder.parent)["references"][target.name]
                values = np.array([stored[str(z)] for z in ELEMENTS])
                sums[:, column] = composition(self.molecules) @ values
        return sums if self.scaling is not None else sums[:, 0]

    def in_units(self, values: np.ndarray) -> np.ndarray:
        """Return labels or predictions in the targets' units; references are not added.

        Parameters
        ----------
        values : ndarray [..., 12] or [...]
            As the dataset gives labels.
        """
        if self.scaling is None:
            return values
        means, spreads = self.scaling
        return values * spreads + means

    @cached_property
    def tensors(self) -> MoleculeTensors:
        """Structures, edges and labels, flat."""
        columns = [list(TARGETS).index(target.name) for target in self.targets]
        if self.scaling is None:
            labels = self.molecules.targets[:, columns[0]] - self.references
        else:
            means, spreads = self.scaling
            labels = (self.molecules.targets[:, columns] - self.references - means) / spreads
        edges = None if self.cutoff is None else radius_edges(self.molecules, self.cutoff)
        return MoleculeTensors.of(self.molecules, labels, edges)

    @cached_property
    def _metadata(self) -> dict[str, np.ndarray]:
        return {"natoms": self.molecules.natoms.astype(np.int64)}

    def __getitem__(self, index: int) -> AtomicData:
        number = int(index) % len(self)
        data = self.tensors.batch(torch.tensor([number]), [self.dataset_name])
        # A bare string, set after construction: fairchem's collater uses it as a dict key.
        data.dataset = self.dataset_name
        return data


class MoleculeConcatDataset(ConcatDataset):
    """Splits of QM9 one after the other; a loader takes whole batches from it.

    Parameters
    ----------
    joined : ConcatDataset
        Of :class:`QM9Dataset` splits; see :func:`create_qm9_dataset`.
    """

    def __init__(self, joined: ConcatDataset) -> None:
        sampling = {"type": "explicit", "ratios": dict.fromkeys(joined.dataset_names, 1.0)}
        parts = dict(zip(joined.dataset_names, joined.datasets, strict=True))
        super().__init__(parts, sampling)
        inner = [subset.dataset for subset in self.datasets]
        wrong = [type(dataset).__name__ for dataset in inner if not hasattr(dataset, "tensors")]
        if wrong:
            raise ConfigError(f"create_qm9_dataset joins datasets qm9_lmdb, not {wrong[0]}")
        self.tensors = MoleculeTensors.concatenate([dataset.tensors for dataset in inner])
        # Position in this dataset to: number of the split, number in the split, place in tensors.
        self._split = np.repeat(np.arange(len(inner)), [len(subset) for subset in self.datasets])
        within = np.concatenate([np.asarray(subset.indices) for subset in self.datasets])
        starts = np.cumsum([0, *(len(dataset) for dataset in inner)])
        self._sample = torch.from_numpy(within)
        self._place = torch.from_numpy(starts[self._split] + within)
        self._names = [dataset.dataset_name for dataset in inner]

    def __getitems__(self, positions: Sequence[int]) -> AtomicData:
        """Return one batch; torch's loader asks for it instead of single samples."""
        chosen = torch.as_tensor(positions)
        splits = self._split[chosen.numpy()].tolist()
        batch = self.tensors.batch(self._place[chosen], [self._names[k] for k in splits])
        batch.sample_id = self._sample[chosen]
        batch.dataset_name = [self.dataset_names[k] for k in splits]
        return batch


def create_qm9_dataset(dataset_configs: Mapping[str, Any]) -> MoleculeConcatDataset:
    """Join splits of QM9, every molecule exactly once.

    Parameters
    ----------
    dataset_configs : mapping
        As for :func:`est_ocp.data.create_dataset`; every format must be ``qm9_lmdb``.
    """
    return MoleculeConcatDataset(create_dataset(dataset_configs))


class BatchCollater(TaskCollater):
    """A :class:`~est_ocp.data.TaskCollater` that lets batches pass which are made already."""

    def __call__(self, systems: AtomicData | list[AtomicData]) -> AtomicData:
        if isinstance(systems, list):
            return super().__call__(systems)
        lacking = [task.name for task in self.tasks if task.name not in systems]
        if lacking:
            raise ConfigError(
                f"task '{lacking[0]}' has no label in QM9's batches, whose one is 'target'; "
                "train with tasks=qm9"
            )
        return systems


def collate_molecules(tasks: Sequence[Any]) -> BatchCollater:
    """Return the ``collate_fn`` of a loader of :func:`create_qm9_dataset`'s datasets."""
    return BatchCollater(tasks, AUXILIARY_TASKS)
