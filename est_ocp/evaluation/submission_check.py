"""Check a leaderboard file: names, shapes, types, numbers, and agreement with the data."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from est_ocp.data.record_index import RecordIndex, first_duplicate
from est_ocp.errors import ARCHIVE_ERRORS, DataError

#: The leaderboard's splits; ours have the prefix ``test_``.
SPLITS = ("id", "ood_ads", "ood_cat", "ood_both")
_PARTS = {"s2ef": ("ids", "energy", "forces", "chunk_idx"), "is2re": ("ids", "energy")}
_OTHER_TASK = {
    "s2ef": "{} holds energies alone, as for IS2RE, but the data are S2EF's, which needs forces",
    "is2re": "{} holds forces, as for S2EF, but the data are IS2RE's, which takes energies alone",
}


@dataclass(frozen=True)
class Summary:
    """What a split of a leaderboard file holds.

    Attributes
    ----------
    structures : int
    vectors : int
        Force vectors; 0 for IS2RE.
    forces : {"all", "free", "either", "unknown", "none"}
        Atoms that they are of: either if no atom is fixed, unknown without the data, none for
        IS2RE.
    compared : bool
        Whether it was compared with the data.
    """

    structures: int
    vectors: int
    forces: str
    compared: bool


def check_submission(
    path: str | Path,
    indexes: Mapping[str, RecordIndex] | None = None,
    forces: str | None = None,
    name: str | None = None,
    task: str | None = None,
) -> dict[str, Summary]:
    """Check a leaderboard file and refuse it with one sentence if it is wrong.

    Parameters
    ----------
    path : path
    indexes : mapping of str to RecordIndex, optional
        Of the data of the splits. Without one, completeness cannot be told.
    forces : {"all", "free"}, optional
        Atoms whose forces it must hold.
    name : str, optional
        What to call the file in errors.
    task : {"s2ef", "is2re"}, optional
        Task of the data, which the file's must be.

    Returns
    -------
    dict of str to Summary

    Raises
    ------
    DataError
        Naming what is wrong.
    """
    name = name or str(path)
    try:
        # The stream stays open: numpy reads each array when it is asked for.
        with np.load(path, allow_pickle=False) as file:
            found_task = _task(name, file.files)
            if task not in (None, found_task):
                raise DataError(_OTHER_TASK[task].format(name))
            found = {}
            for split in SPLITS:
                index = (indexes or {}).get(split)
                found[split] = _check_split(
                    name, split, _Arrays(name, file, split), found_task, index
                )
    except ARCHIVE_ERRORS as error:
        if isinstance(error, DataError):
            raise
        # A single array (npy) is no context manager: a TypeError.
        raise DataError(f"{name} is not a readable npz archive ({error})") from None
    kinds = {summary.forces for summary in found.values()} - {"either", "none"}
    if len(kinds) > 1:
        raise DataError(f"{name} holds forces of all atoms in some splits and of free in others")
    if forces is not None and not kinds <= {forces, "unknown"}:
        raise DataError(f"{name} holds forces of {kinds.pop()} atoms, not of {forces} atoms")
    return found


class _Arrays:
    """The arrays of one split, read when asked for, with errors that name them."""

    def __init__(self, name: str, file: Any, split: str) -> None:
        self.name, self.file, self.split = name, file, split

    def read(self, part: str, dimensions: int, kinds: str, what: str) -> np.ndarray:
        key = f"{self.split}_{part}"
        try:
            array = self.file[key]
        except ARCHIVE_ERRORS as error:
            raise DataError(f"'{key}' of {self.name} cannot be read ({error})") from None
        if array.dtype.kind not in kinds:
            raise DataError(f"'{key}' of {self.name} is of type {array.dtype}, not {what}")
        if array.ndim != dimensions:
            shape = list(array.shape)
            raise DataError(f"'{key}' of {self.name} has shape {shape}, not {dimensions}-D")
        return array

    def read_float32(self, part: str, dimensions: int) -> np.ndarray:
        array = self.read(part, dimensions, "f", "float32")
        key = f"{self.split}_{part}"
        if array.dtype != np.float32:
            raise DataError(f"'{key}' of {self.name} is of type {array.dtype}, not float32")
        bad = ~np.isfinite(array)
        if bad.any():
            row = int(np.argwhere(bad)[0][0])
            raise DataError(
                f"'{key}' of {self.name} has {int(bad.sum())} values that are not finite, the "
                f"first in row {row}"
            )
        return array


def _task(name: str, keys: list[str]) -> str:
    """Return the task that the keys are of; refuse missing and unknown ones."""
    task = "s2ef" if any(key.endswith(("_forces", "_chunk_idx")) for key in keys) else "is2re"
    expected = [f"{split}_{part}" for split in SPLITS for part in _PARTS[task]]
    unknown = sorted(set(keys) - set(expected))
    if unknown:
        near = difflib.get_close_matches(unknown[0], expected, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"splits are {', '.join(SPLITS)}"
        raise DataError(f"{name} has the unknown key '{unknown[0]}'; {hint}")
    missing = [key for key in expected if key not in keys]
    if missing:
        raise DataError(f"{name} lacks the key '{missing[0]}' ({task.upper()} needs all splits)")
    return task


def _check_split(
    name: str, split: str, arrays: _Arrays, task: str, index: RecordIndex | None
) -> Summary:
    ids = arrays.read("ids", 1, "USiu", "text").astype(str)
    if len(ids) == 0:
        raise DataError(f"'{split}_ids' of {name} is empty")
    repeated = first_duplicate(ids)
    if repeated is not None:
        a, b = repeated
        raise DataError(f"'{split}_ids' of {name} holds '{ids[a]}' twice (rows {a} and {b})")
    rows = _rows_in_data(name, split, ids, index) if index is not None else None
    energy = arrays.read_float32("energy", 1)
    if len(energy) != len(ids):
        raise DataError(
            f"'{split}_energy' of {name} has {len(energy)} values for {len(ids)} identifiers"
        )
    if task == "is2re":
        return Summary(len(ids), 0, "none", index is not None)
    forces = arrays.read_float32("forces", 2)
    if forces.shape[1] != 3:
        raise DataError(f"'{split}_forces' of {name} has shape {list(forces.shape)}, not [N, 3]")
    sizes = _chunk_sizes(name, split, arrays, len(ids), len(forces))
    kind = "unknown" if rows is None else _force_kind(name, split, ids, sizes, rows, index)
    return Summary(len(ids), len(forces), kind, index is not None)


def _chunk_sizes(
    name: str, split: str, arrays: _Arrays, structures: int, vectors: int
) -> np.ndarray:
    """Return the number of force vectors of each structure."""
    key = f"'{split}_chunk_idx' of {name}"
    chunks = arrays.read("chunk_idx", 1, "iu", "whole numbers").astype(np.int64)
    if len(chunks) != structures - 1:
        raise DataError(
            f"{key} has {len(chunks)} values for {structures} structures; it must have one less "
            "than there are structures (cumsum(natoms)[:-1])"
        )
    sizes = np.diff(chunks, prepend=0, append=vectors)
    if (sizes < 0).any():
        raise DataError(f"{key} does not ascend to at most {vectors}, the number of force vectors")
    return sizes


def _rows_in_data(name: str, split: str, ids: np.ndarray, index: RecordIndex) -> np.ndarray:
    """Return each identifier's record; refuse identifiers that are missing or not in the data."""
    known = index.ids
    if len(np.intersect1d(ids, known)) == 0:
        systems = np.array([text.rpartition("_")[0] or text for text in known.tolist()])
        if len(np.intersect1d(ids, systems)):
            known = systems
    order = np.argsort(known, kind="stable")
    places = np.minimum(np.searchsorted(known[order], ids), len(known) - 1)
    rows = order[places]
    foreign = np.flatnonzero(known[rows] != ids)
    if len(foreign):
        raise DataError(
            f"'{split}_ids' of {name} has {len(foreign)} identifiers that are not in the data, the "
            f"first is '{ids[foreign[0]]}'"
        )
    if len(ids) < len(known):
        missing = known[np.setdiff1d(np.arange(len(known)), rows)]
        raise DataError(
            f"'{split}_ids' of {name} lacks {len(missing)} of the data's {len(known)} structures, "
            f"the first is '{missing[0]}'"
        )
    return rows


def _force_kind(
    name: str, split: str, ids: np.ndarray, sizes: np.ndarray, rows: np.ndarray, index: RecordIndex
) -> str:
    """Return whether the numbers of force vectors are those of all or of free atoms."""
    natoms, nfree = index.natoms[rows], index.nfree[rows]
    wrong_all, wrong_free = (np.flatnonzero(sizes != counts) for counts in (natoms, nfree))
    if len(wrong_all) == 0:
        # A split without fixed atoms fits both.
        return "all" if len(wrong_free) else "either"
    if len(wrong_free) == 0:
        return "free"
    first = int(max(wrong_all[0], wrong_free[0]))
    raise DataError(
        f"'{split}_chunk_idx' of {name} gives '{ids[first]}' {sizes[first]} force vectors, but it "
        f"has {natoms[first]} atoms, {nfree[first]} of them free"
    )
