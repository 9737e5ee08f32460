"""A sample of each split: seconds, whatever the size of the set."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from fairchem.core.common.registry import registry

from est_ocp.data import OC20LmdbDataset, create_dataset
from est_ocp.data.metadata import cache_path, metadata_path, natoms_of
from est_ocp.errors import ESTError
from est_ocp.preflight.run_config import SplitConfig


@dataclass
class SplitSample:
    """What was read of a split.

    Attributes
    ----------
    split : SplitConfig
    length : int
        Structures in the split; 0 if it cannot be opened.
    open_error : str or None
        Why it cannot be opened.
    systems : list of AtomicData
        The structures that could be read.
    read_errors : list of str
        Why others could not.
    natoms : array, int
        Atoms of every structure where a metadata file tells, else of the sample.
    complete : bool
        Whether ``natoms`` is of every structure.
    """

    split: SplitConfig
    length: int = 0
    open_error: str | None = None
    systems: list[Any] = field(default_factory=list)
    read_errors: list[str] = field(default_factory=list)
    natoms: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    complete: bool = False

    def label(self, name: str) -> np.ndarray:
        """Return a label of one number a structure, those that have it, float64."""
        return np.array(
            [float(s[name].reshape(-1)[0]) for s in self.systems if s.get(name, None) is not None]
        )


def read_sample(split: SplitConfig, count: int, seed: int = 0) -> SplitSample:
    """Read structures spread evenly over a split, each drawn at random from its stretch.

    Parameters
    ----------
    split : SplitConfig
    count : int
        Structures to read.
    seed : int
    """
    try:
        dataset, known = open_split(split)
    except (ESTError, OSError, ValueError, KeyError, TypeError) as error:
        return SplitSample(split, open_error=_one_line(error))
    out = SplitSample(split, length=len(dataset))
    edges = np.linspace(0, out.length, min(count, out.length) + 1).astype(int)
    generator = np.random.default_rng(seed)
    for low, high in pairwise(edges):
        try:
            out.systems.append(dataset[int(generator.integers(low, high))])
        except (ESTError, OSError, ValueError, KeyError, TypeError) as error:
            out.read_errors.append(_one_line(error))
    for system in out.systems:
        if "dataset_name" not in system:
            system.dataset_name = f"{split.dataset}.{split.name}"
    out.natoms = np.array([int(s.natoms) for s in out.systems], dtype=np.int64)
    if known is not None and len(known) == out.length:
        out.natoms, out.complete = known, True
    return out


def open_split(split: SplitConfig) -> tuple[Any, np.ndarray | None]:
    """Return a split as training sees it, and its numbers of atoms where a file tells them.

    Where none does, fairchem would read every record first, which can take hours: then it is the
    files' own dataset, without what ``max_atoms`` and the like leave out.

    Raises
    ------
    ESTError, OSError, ValueError, KeyError, TypeError
        As the dataset raises them.
    """
    own = split.entry["splits"][split.name]
    if registry.get_dataset_class(split.entry.get("format", "lmdb")) is OC20LmdbDataset:
        entry = {key: value for key, value in split.entry.items() if key != "splits"}
        files = OC20LmdbDataset(entry | own)
        given = files.config.get("metadata_path")
        places = (metadata_path(files.shards), cache_path(files.shards))
        if not given and not any(place.is_file() for place in places):
            return files, None
        known = natoms_of(files.shards, given)
    else:
        known = None
    dataset = create_dataset({split.dataset: {**split.entry, "splits": {split.name: own}}})
    return dataset, known


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
