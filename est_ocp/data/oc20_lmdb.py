"""OC20's official LMDB files as a fairchem dataset."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import numpy as np
from fairchem.core.common.registry import registry
from fairchem.core.datasets._utils import rename_data_object_keys
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.datasets.base_dataset import BaseDataset
from fairchem.core.modules.transforms import DataTransforms

from est_ocp.data.metadata import check_length, natoms_of
from est_ocp.data.record import to_atomic_data
from est_ocp.data.shards import LmdbShards, expand_path, find_shards
from est_ocp.data.unpickle import as_fields, safe_loads
from est_ocp.errors import ConfigError, DataError, ESTError, unknown_keys

TASKS = ("s2ef", "is2re")

#: Keys read here, and keys that fairchem's ``create_dataset`` reads from the same mapping.
OWN_KEYS = (
    "src", "task", "dataset_name", "metadata_path", "key_mapping", "transforms",
    "max_num_elements", "allow_missing_shards",
)  # fmt: skip
FAIRCHEM_KEYS = (
    "format", "splits", "seed", "max_atoms", "subset_to", "first_n", "sample_n", "no_shuffle",
    "lin_ref",
)  # fmt: skip


@registry.register_dataset("est_oc20_lmdb")
class OC20LmdbDataset(BaseDataset):
    """S2EF or IS2RE structures from OC20's LMDB files.

    Positions are given as stored; the model's graph builder takes care of periodic images.

    Parameters
    ----------
    config : dict
        ``src`` : folder of ``data.%04d.lmdb`` shards or one LMDB file; ``~`` and environment
        variables are expanded.
        ``task`` : "s2ef" (default) or "is2re".
        ``dataset_name`` : name by which tasks refer to this dataset (default "oc20").
        ``metadata_path`` : metadata.npz with ``natoms``; by default the one beside the shards,
        made when missing.
        ``max_num_elements`` : atomic numbers must be below it (default 100).
        ``allow_missing_shards`` : accept gaps in the numbering (default False).
        ``key_mapping``, ``transforms`` : as in fairchem's datasets.

    Raises
    ------
    ConfigError
        If a key is unknown or a value has no meaning.
    DataError
        If files are missing or damaged, at construction; if a record cannot be used, when it is
        read. The message names the file, the record and the remedy.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        unknown_keys(config, OWN_KEYS + FAIRCHEM_KEYS, "dataset est_oc20_lmdb")
        src = config.get("src")
        if not isinstance(src, str | os.PathLike):
            raise ConfigError(
                f"src of dataset est_oc20_lmdb must be one folder or file, not {src!r}; "
                "give several datasets one entry each with the same dataset_name"
            )
        self.task = config.get("task", "s2ef")
        if self.task not in TASKS:
            raise ConfigError(f"task '{self.task}' of dataset est_oc20_lmdb is not one of {TASKS}")
        self.dataset_name = config.get("dataset_name", "oc20")
        self.max_num_elements = int(config.get("max_num_elements", 100))
        self.key_mapping = config.get("key_mapping") or {}
        self.transforms = DataTransforms(config.get("transforms") or {})

        path = expand_path(src)
        super().__init__({**config, "src": str(path)})
        self.shards = LmdbShards(
            find_shards(path, allow_missing=bool(config.get("allow_missing_shards", False)))
        )
        if not config.get("metadata_path"):
            check_length(self.shards)
        self.num_samples = len(self.shards)

    @cached_property
    def _metadata(self) -> dict[str, np.ndarray]:
        return {"natoms": natoms_of(self.shards, self.config.get("metadata_path"))}

    def fields(self, index: int) -> dict[str, Any]:
        """Return the raw fields of a record.

        Raises
        ------
        DataError
            If the record is missing, damaged, or names something that may not be unpickled.
        """
        payload = self.shards.read(index)
        try:
            return as_fields(safe_loads(payload))
        except DataError as error:
            raise DataError(f"{self.shards.describe(index)} {error}") from error

    def __getitem__(self, index: int) -> AtomicData:
        index = int(index)
        if index < 0:
            index += len(self)
        fields = self.fields(index)
        where = self.shards.describe(index)
        try:
            data = to_atomic_data(
                fields,
                task=self.task,
                index=index,
                where=where,
                max_num_elements=self.max_num_elements,
            )
        except ESTError:
            raise
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise DataError(
                f"{where} cannot be made a structure ({error}); remove or repair the record"
            ) from error
        # A bare string, set after construction: fairchem's collater uses it as a dict key.
        data.dataset = self.dataset_name
        return rename_data_object_keys(self.transforms(data), self.key_mapping)

    def close(self) -> None:
        """Close this process's LMDB handles; reading opens them again."""
        self.shards.close()
