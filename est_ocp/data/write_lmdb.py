"""Write structures in OC20's on-disk format: pickled ``torch_geometric`` data in LMDB shards."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from tqdm import tqdm

from est_ocp.data.metadata import metadata_path, save_natoms
from est_ocp.data.shards import LmdbShards
from est_ocp.errors import ConfigError, DataError

_FIRST_MAP_SIZE = 1 << 24
_RECORDS_PER_TRANSACTION = 512
_OLD_NAMES = {"energy": "y", "forces": "force"}
_LABELS = {"s2ef": ("energy", "forces"), "is2re": ("y_init", "y_relaxed", "pos_relaxed")}


def write_oc20_lmdb(
    path: str | os.PathLike[str],
    records: Iterable[Mapping[str, Any]],
    task: str = "s2ef",
    shards: int = 1,
    *,
    metadata: bool = True,
    old_names: bool = True,
    overwrite: bool = False,
) -> list[Path]:
    """Write records as OC20's LMDB files.

    Each file is written under a temporary name and then renamed, so that an interrupted call
    leaves no half file behind.

    Parameters
    ----------
    path : path
        A folder, for ``data.0000.lmdb``, ... (S2EF) or ``data.lmdb`` (IS2RE in one shard); or the
        name of one file ending in ``.lmdb``.
    records : iterable of mapping
        ``pos`` [N, 3], ``atomic_numbers`` [N], ``cell`` [3, 3]; optional ``tags`` [N], ``fixed``
        [N], ``sid``, ``fid``; labels ``energy`` and ``forces`` [N, 3] (S2EF) or ``y_init``,
        ``y_relaxed`` and ``pos_relaxed`` [N, 3] (IS2RE), absent in test splits. eV and Angstrom.
    task : {"s2ef", "is2re"}
        Which labels to write.
    shards : int
        Number of files; records are split in order, the first files taking one more where the
        split is uneven.
    metadata : bool
        Write ``metadata.npz`` with the numbers of atoms.
    old_names : bool
        Name S2EF labels ``y`` and ``force``, as OC20's downloads do; else ``energy``, ``forces``.
    overwrite : bool
        Replace the LMDB files that are there.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    DataError
        If there are no records, files are there and ``overwrite`` is False, or the disk is full.
    ConfigError
        If ``task`` or ``shards`` has no meaning.
    """
    if task not in _LABELS:
        raise ConfigError(f"task '{task}' is not one of {tuple(_LABELS)}")
    records = records if isinstance(records, Sequence) else list(records)
    path = Path(path)
    if not records:
        raise DataError(f"no records to write to '{path}'")
    if not 1 <= shards <= len(records):
        raise ConfigError(f"{len(records)} records cannot fill {shards} shards")
    targets = _targets(path, task, shards)
    folder = targets[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    present = [target for target in targets if target.exists()]
    if path.suffix != ".lmdb":
        present = sorted(folder.glob("*.lmdb"))
    if present and not overwrite:
        raise DataError(f"'{present[0]}' is already there; remove it or pass overwrite=True")
    for old in present:
        old.unlink()

    natoms = []
    with tqdm(total=len(records), desc=f"writing {folder.name}", disable=None) as bar:
        parts = np.array_split(np.arange(len(records)), shards)
        for target, chosen in zip(targets, parts, strict=True):
            natoms += _write_file(target, [records[i] for i in chosen], task, old_names, bar)
    where = metadata_path(LmdbShards(targets))
    where.unlink(missing_ok=True)
    if metadata:
        try:
            save_natoms(where, np.array(natoms))
        except OSError as error:
            raise _not_written(where, error) from error
    return targets


def to_pyg(record: Mapping[str, Any], task: str = "s2ef", old_names: bool = True) -> Any:
    """Return a record as the ``torch_geometric`` object that OC20 stores (float32 tensors)."""
    from torch_geometric.data import Data

    pos = torch.as_tensor(np.asarray(record["pos"]), dtype=torch.float32)
    count = pos.shape[0]
    data = Data(
        pos=pos,
        atomic_numbers=torch.as_tensor(np.asarray(record["atomic_numbers"]), dtype=torch.float32),
        cell=torch.as_tensor(np.asarray(record["cell"]), dtype=torch.float32).reshape(1, 3, 3),
        natoms=count,
    )
    for name in ("tags", "fixed"):
        values = np.asarray(record.get(name, np.zeros(count)))
        setattr(data, name, torch.as_tensor(values, dtype=torch.float32))
    for name in ("sid", "fid"):
        if record.get(name) is not None:
            setattr(data, name, int(record[name]))
    for name in _LABELS[task]:
        if record.get(name) is None:
            continue
        value = np.asarray(record[name])
        stored = _OLD_NAMES.get(name, name) if old_names else name
        is_scalar = value.size == 1 and name not in ("forces", "pos_relaxed")
        setattr(data, stored, float(value) if is_scalar else torch.tensor(value).float())
    return data


def _targets(path: Path, task: str, shards: int) -> list[Path]:
    if path.suffix == ".lmdb":
        if shards != 1:
            raise ConfigError(f"'{path}' is one file; give a folder to write {shards} shards")
        return [path]
    if task == "is2re" and shards == 1:
        return [path / "data.lmdb"]
    return [path / f"data.{number:04d}.lmdb" for number in range(shards)]


def _write_file(
    target: Path, records: list[Mapping[str, Any]], task: str, old_names: bool, bar: tqdm
) -> list[int]:
    """Write one shard and return the numbers of atoms of its records."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    natoms = []
    try:
        env = lmdb.open(
            os.fspath(partial), subdir=False, lock=False, meminit=False, map_size=_FIRST_MAP_SIZE
        )
        try:
            for start in range(0, len(records), _RECORDS_PER_TRANSACTION):
                items = []
                for record in records[start : start + _RECORDS_PER_TRANSACTION]:
                    data = to_pyg(record, task, old_names)
                    items.append((str(start + len(items)), pickle.dumps(data, protocol=-1)))
                    natoms.append(data.natoms)
                _put(env, items)
                bar.update(len(items))
            _put(env, [("length", pickle.dumps(len(records), protocol=-1))])
            env.sync(True)
        finally:
            env.close()
        os.replace(partial, target)
    except lmdb.Error as error:
        raise _not_written(target, error) from error
    finally:
        partial.unlink(missing_ok=True)
    return natoms


def _not_written(target: Path, error: Exception) -> DataError:
    free = shutil.disk_usage(target.parent).free / 2**20
    return DataError(
        f"'{target}' cannot be written ({error}; {free:.1f} MiB are free there); free some space, "
        "then write it again"
    )


def _put(env: lmdb.Environment, items: list[tuple[str, bytes]]) -> None:
    """Store pairs in one transaction, enlarging the map until they fit."""
    while True:
        try:
            with env.begin(write=True) as transaction:
                for key, value in items:
                    transaction.put(key.encode("ascii"), value)
            return
        except lmdb.MapFullError:
            env.set_mapsize(2 * env.info()["map_size"])
