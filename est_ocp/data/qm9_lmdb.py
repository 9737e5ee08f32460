"""Molecules in LMDB files, many to a record, and the command's writer of the three splits.

A record is an uncompressed npz of some thousands of molecules, so that opening a file reads all of
QM9 in a fraction of a second and nothing in it can run code. Keys are ``header`` (JSON) and
``000000``, ``000001``, ...
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from tqdm import tqdm

from est_ocp.data.metadata import save_natoms
from est_ocp.data.qm9_molecules import Molecules, concatenate
from est_ocp.data.qm9_sources import FULL_SIZE, read_pyg_raw, read_qm9pack
from est_ocp.data.qm9_split import QM9_SPLITS, part_of
from est_ocp.data.qm9_statistics import fit_references, statistics_of
from est_ocp.data.qm9_subset import read_subset
from est_ocp.data.shards import open_lmdb
from est_ocp.errors import ConfigError, DataError
from est_ocp.qm9_targets import TARGETS

#: Readers by the name of the source; each takes the path that the user gives, or None.
SOURCES = {"qm9pack": read_qm9pack, "pyg-raw": read_pyg_raw, "subset": lambda _: read_subset()}

#: In the output folder: sizes, units, references and statistics. Written last.
SUMMARY = "qm9.json"
LICENCE = (
    "QM9: R. Ramakrishnan, P. O. Dral, M. Rupp, O. A. von Lilienfeld, Scientific Data 1, 140022 "
    "(2014), https://doi.org/10.1038/sdata.2014.22, CC BY 4.0"
)

_FORMAT = "est-ocp qm9 1"
_BLOCK = 4096
_REMEDY = "write it again with `est-ocp data qm9`"


def write_molecules(path: Path, molecules: Molecules, block: int = _BLOCK) -> None:
    """Write molecules to one LMDB file, under a temporary name until it is complete."""
    blocks = [
        molecules.take(np.arange(start, min(start + block, len(molecules))))
        for start in range(0, len(molecules), block)
    ]
    payloads = [_npz(part.arrays()) for part in blocks]
    header = {"format": _FORMAT, "molecules": len(molecules), "blocks": len(blocks)}
    header |= {"targets": {name: target.unit for name, target in TARGETS.items()}}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    size = sum(map(len, payloads)) * 2 + (1 << 22)
    try:
        env = lmdb.open(os.fspath(partial), subdir=False, lock=False, map_size=size)
        try:
            with env.begin(write=True) as transaction:
                for number, payload in enumerate(
                    tqdm(payloads, desc=f"writing {path.name}", unit="block", disable=None)
                ):
                    transaction.put(_key(number), payload)
                transaction.put(b"header", json.dumps(header).encode())
            env.sync(True)
        finally:
            env.close()
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_molecules(path: str | os.PathLike[str]) -> Molecules:
    """Read a whole file of :func:`write_molecules`.

    Raises
    ------
    DataError
        If it is missing, damaged or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"there is no '{path}'; write it with `est-ocp data qm9 --out {path.parent}` or "
            "correct data.root"
        )
    try:
        env = open_lmdb(path)
        try:
            with env.begin() as transaction:
                header = json.loads(transaction.get(b"header") or b"{}")
                if header.get("format") != _FORMAT:
                    raise DataError(f"'{path}' is not in the format '{_FORMAT}'")
                parts = [_load(transaction.get(_key(n))) for n in range(header["blocks"])]
        finally:
            env.close()
        molecules = concatenate(parts)
    except DataError as error:
        raise DataError(f"{error}; {_REMEDY}") from error
    except Exception as error:
        # A damaged file can fail in LMDB, in the zip archive or in NumPy's header.
        raise DataError(f"'{path}' is damaged ({error}); {_REMEDY}") from error
    if len(molecules) != header["molecules"]:
        raise DataError(f"'{path}' lacks some of its molecules; {_REMEDY}")
    return molecules


def write_qm9(
    out_dir: str | os.PathLike[str],
    source: str = "qm9pack",
    path: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Write QM9's three splits, references and statistics, unless they are there and whole.

    Parameters
    ----------
    out_dir : path
        Gets ``{train,val,test}/data.lmdb``, each with ``metadata.npz``, and ``qm9.json``.
    source : {"qm9pack", "pyg-raw", "subset"}
    path : path, optional
        Where the source lies: see :func:`est_ocp.data.qm9_sources.read_qm9pack` and
        :func:`~est_ocp.data.qm9_sources.read_pyg_raw`.

    Returns
    -------
    dict
        The content of ``qm9.json``.

    Raises
    ------
    ConfigError
        If the source is unknown, or a path is given for the embedded subset.
    DataError
        If the source cannot be read or a split would be empty.
    """
    if source not in SOURCES:
        raise ConfigError(f"source '{source}' is not one of {', '.join(SOURCES)}")
    if source == "subset" and path is not None:
        raise ConfigError("the embedded subset needs no --source; leave it out")
    out_dir = Path(out_dir)
    molecules = SOURCES[source](path)
    content = _digest(molecules)
    summary = _whole_summary(out_dir, content)
    if summary is not None:
        return summary
    parts = part_of(molecules.index)
    splits = {name: molecules.take(np.flatnonzero(parts == k)) for k, name in enumerate(QM9_SPLITS)}
    empty = [name for name, part in splits.items() if len(part) == 0]
    if empty:
        raise DataError(
            f"the source holds {len(molecules)} of QM9's {FULL_SIZE} molecules and none of the "
            f"split '{empty[0]}'; fetch it again"
        )
    (out_dir / SUMMARY).unlink(missing_ok=True)
    for name, part in splits.items():
        folder = out_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        write_molecules(folder / "data.lmdb", part)
        save_natoms(folder / "metadata.npz", part.natoms)
    summary = {
        "source": source,
        "content": content,
        "molecules": {name: len(part) for name, part in splits.items()},
        "of": FULL_SIZE,
        "units": {name: target.unit for name, target in TARGETS.items()},
        **statistics_of(splits["train"], fit_references(splits["train"])),
        "licence": LICENCE,
    }
    partial = out_dir / f".{SUMMARY}.{os.getpid()}.partial"
    partial.write_text(json.dumps(summary, indent=2) + "\n")
    os.replace(partial, out_dir / SUMMARY)
    return summary


def read_summary(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return ``qm9.json`` of an output folder.

    Raises
    ------
    DataError
        If it is missing or damaged.
    """
    path = Path(folder) / SUMMARY
    if not path.is_file():
        raise DataError(
            f"there is no '{path}': the data are not there or not complete; "
            f"run `est-ocp data qm9 --out {path.parent}`"
        )
    try:
        summary = json.loads(path.read_text())
        if not {"references", "mean", "std", "molecules"} <= summary.keys():
            raise ValueError("it lacks some of its entries")
    except (ValueError, AttributeError) as error:
        raise DataError(f"'{path}' is damaged ({error}); {_REMEDY}") from error
    return summary


def _whole_summary(out_dir: Path, content: str) -> dict[str, Any] | None:
    """Return the summary of a folder that holds this content in full, else None."""
    try:
        summary = read_summary(out_dir)
        sizes = {name: len(read_molecules(out_dir / name / "data.lmdb")) for name in QM9_SPLITS}
    except DataError:
        return None
    whole = summary.get("content") == content and summary["molecules"] == sizes
    return summary if whole else None


def _digest(molecules: Molecules) -> str:
    digest = hashlib.sha256(_FORMAT.encode())
    for array in molecules.arrays().values():
        digest.update(array.tobytes())
    return digest.hexdigest()


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def _load(payload: bytes | None) -> Molecules:
    if payload is None:
        raise ValueError("a block is missing")
    with np.load(io.BytesIO(payload), allow_pickle=False) as stored:
        return Molecules(**stored)


def _key(number: int) -> bytes:
    return f"{number:06d}".encode("ascii")
