"""Identifier, number of atoms and number of free atoms of every record of a dataset.

What comparing a file of predictions with its data needs, without decoding the structures: one pass
over the records with several processes, kept in the cache folder.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from est_ocp.data.metadata import cache_path, file_lock
from est_ocp.data.record import identifier
from est_ocp.data.shards import LmdbShards
from est_ocp.data.unpickle import UndecodedTensor, atoms_in, undecoded_fields
from est_ocp.errors import ARCHIVE_ERRORS, DataError

logger = logging.getLogger(__name__)

#: Records of one piece of work; below some pieces one process is quicker.
_CHUNK = 4096
_MIN_CHUNKS = 4


@dataclass(frozen=True)
class RecordIndex:
    """What is known of B records, in the order of the files.

    Attributes
    ----------
    ids : array [B] of str
        ``sid``, or ``sid_fid`` (S2EF).
    natoms, nfree : arrays [B], int64
        Atoms, and atoms that are not held fixed.
    """

    ids: np.ndarray
    natoms: np.ndarray
    nfree: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def duplicate(self) -> tuple[int, int] | None:
        """Return the numbers of two records with the same identifier, or None."""
        return first_duplicate(self.ids)


def first_duplicate(ids: np.ndarray) -> tuple[int, int] | None:
    """Return the positions of two equal entries, or None."""
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    return (int(order[same[0]]), int(order[same[0] + 1])) if len(same) else None


def record_index(shards: LmdbShards, task: str, workers: int | None = None) -> RecordIndex:
    """Return the index of a dataset's files, from the cache or by one pass with a progress bar.

    Parameters
    ----------
    shards : LmdbShards
    task : {"s2ef", "is2re"}
        Which identifier the records have.
    workers : int, optional
        Processes; default: one for each core, for a large set.

    Raises
    ------
    DataError
        If a record cannot be read or has no usable identifier.
    """
    cached = cache_path(shards, f"index-{task}")
    with file_lock(cached.with_suffix(".lock")):
        found = _load(cached, len(shards))
        if found is None:
            found = scan(shards, task, workers)
            _save(cached, found)
    return found


def scan(shards: LmdbShards, task: str, workers: int | None = None) -> RecordIndex:
    """Read the index from the records."""
    ranges = [range(i, min(i + _CHUNK, len(shards))) for i in range(0, len(shards), _CHUNK)]
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        workers = cores if len(ranges) >= _MIN_CHUNKS else 1
    read = partial(_scan_range, shards, task)
    parts = []
    name = shards.files[0].parent.name
    with tqdm(total=len(shards), desc=f"reading ids of {name}", unit="record", disable=None) as bar:
        if workers <= 1:
            found = map(read, ranges)
            pool = None
        else:
            # Forked, since a new interpreter would import everything again.
            pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))
            found = pool.map(read, ranges)
        try:
            for part in found:
                parts.append(part)
                bar.update(len(part))
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)
    shards.close()
    columns = ((part.ids, part.natoms, part.nfree) for part in parts)
    return RecordIndex(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _scan_range(shards: LmdbShards, task: str, numbers: range) -> RecordIndex:
    rows = [_one(shards, task, number) for number in numbers]
    ids, natoms, nfree = zip(*rows, strict=True)
    return RecordIndex(np.array(ids), np.array(natoms, np.int64), np.array(nfree, np.int64))


def _one(shards: LmdbShards, task: str, number: int) -> tuple[str, int, int]:
    payload = shards.read(number)
    where = shards.describe(number)
    try:
        fields = undecoded_fields(payload)
        natoms = atoms_in(fields)
        needed = {
            name: value.decode() if isinstance(value, UndecodedTensor) else value
            for name in ("sid", "fid", "fixed")
            if (value := fields.get(name)) is not None
        }
    except DataError as error:
        raise DataError(f"{where} {error}") from error
    fixed = np.asarray(needed.get("fixed", np.zeros(natoms)))
    if fixed.size != natoms:
        raise DataError(f"{where} has {fixed.size} 'fixed' for {natoms} positions")
    return identifier(needed, task, number, where), natoms, int((fixed == 0).sum())


def _load(path: Path, length: int) -> RecordIndex | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            index = RecordIndex(file["ids"], file["natoms"], file["nfree"])
    except ARCHIVE_ERRORS:
        return None
    return index if len(index) == length else None


def _save(path: Path, index: RecordIndex) -> None:
    """Keep the index; without a folder to write to it is read anew the next time."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".index-", suffix=".npz")
        with os.fdopen(handle, "wb") as stream:
            np.savez_compressed(stream, **vars(index))
        os.replace(name, path)
    except OSError as error:
        logger.warning("cannot write '%s' (%s)", path, error)
