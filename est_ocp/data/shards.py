"""Folders of LMDB shards as one sequence of byte records."""

from __future__ import annotations

import bisect
import os
import re
from pathlib import Path

import lmdb
import numpy as np

from est_ocp.data.unpickle import safe_loads
from est_ocp.errors import DataError

_NUMBERED = re.compile(r"data\.(\d+)\.lmdb")
#: What curl, aria2, browsers and rsync call a file that they have not finished.
_UNFINISHED = re.compile(
    r"data\.\d+\.lmdb\.(part|partial|tmp|aria2|crdownload|download)|\.data\.\d+\.lmdb\.\w{6}"
)
_LENGTH_KEY = b"length"


def expand_path(path: str | os.PathLike[str]) -> Path:
    """Expand ``~`` and environment variables.

    Raises
    ------
    DataError
        If the path names an environment variable that is not set.
    """
    text = os.path.expandvars(os.path.expanduser(os.fspath(path)))
    unset = re.search(r"\$\{?(\w+)", text)
    if unset:
        raise DataError(
            f"the path '{path}' uses the environment variable {unset[1]}, which is not set; "
            f"export {unset[1]} or give the path in full"
        )
    return Path(text)


def find_shards(src: str | os.PathLike[str], allow_missing: bool = False) -> list[Path]:
    """List the LMDB files of a dataset in the order of their numbers.

    Parameters
    ----------
    src : path
        A folder of ``data.0000.lmdb``, ``data.0001.lmdb``, ..., or one LMDB file.
    allow_missing : bool
        Accept gaps in the numbering.

    Raises
    ------
    DataError
        If there is nothing to read, a number is missing, or a download was interrupted.
    """
    src = expand_path(src)
    if src.is_file():
        return [src]
    if not src.is_dir():
        raise DataError(
            f"there is no folder or file '{src}'; give src a folder of data.*.lmdb files "
            "or one .lmdb file (docs/data.md says how to fetch OC20)"
        )
    unfinished = sorted(p.name for p in src.iterdir() if _UNFINISHED.fullmatch(p.name))
    if unfinished:
        raise DataError(
            f"'{src}' holds '{unfinished[0]}', which an interrupted download left; finish it, or "
            "remove the file if its shard is whole"
        )
    files = [path for path in src.glob("*.lmdb") if path.is_file() and path.name[0] != "."]
    if not files:
        inner = sorted(path.parent.name for path in src.glob("*/*.lmdb"))
        hint = f"; did you mean its subfolder '{inner[0]}'?" if inner else ""
        raise DataError(f"there is no *.lmdb file in '{src}'{hint or '; check src'}")
    numbers = {}
    for path in files:
        match = _NUMBERED.fullmatch(path.name)
        if match:
            numbers[int(match[1])] = path
    if len(numbers) < len(files):
        if numbers or len(files) > 1:
            odd = sorted(path.name for path in files if path not in numbers.values())
            raise DataError(
                f"'{src}' holds '{odd[0]}' beside other LMDB files; "
                "name the shards data.0000.lmdb, data.0001.lmdb, ... or give src one file"
            )
        return files
    gaps = sorted(set(range(max(numbers) + 1)) - set(numbers))
    if gaps and not allow_missing:
        raise DataError(
            f"'{src}' lacks data.{gaps[0]:04d}.lmdb ({len(gaps)} missing below the last shard); "
            "fetch it, or set allow_missing_shards: true"
        )
    return [numbers[number] for number in sorted(numbers)]


def open_lmdb(path: Path) -> lmdb.Environment:
    """Open an LMDB file for reading, checking first that all its pages are there.

    A file that is shorter than its own header says would kill the process (SIGBUS) at the
    first read of a missing page.

    Raises
    ------
    DataError
        If the file is not a whole LMDB file.
    """
    try:
        size = path.stat().st_size
        if size == 0:
            raise DataError(f"'{path}' is empty (0 bytes); fetch or write it again")
        env = lmdb.open(
            os.fspath(path), subdir=False, readonly=True, lock=False, readahead=False,
            meminit=False, max_spare_txns=1,
        )  # fmt: skip
    except (lmdb.Error, OSError) as error:
        raise DataError(f"'{path}' cannot be opened as LMDB ({error}); fetch it again") from error
    needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if size < needed:
        env.close()
        raise DataError(
            f"'{path}' is truncated: {size} bytes where its header needs {needed}; fetch it again"
        )
    return env


def count_records(env: lmdb.Environment, path: Path) -> int:
    """Return the number of records in a shard: its ``length`` entry, or its number of entries.

    Raises
    ------
    DataError
        If the shard is empty or ``length`` contradicts the entries.
    """
    try:
        with env.begin() as transaction:
            entries = env.stat()["entries"]
            stored = transaction.get(_LENGTH_KEY)
            if stored is None:
                length = entries
            else:
                length = safe_loads(stored)
                length = int(length) if isinstance(length, int | np.integer) else -1
                beyond = transaction.get(str(length).encode("ascii")) is not None
                if length < 0 or length > entries - 1 or beyond:
                    raise DataError(
                        f"'{path}' says length = {length} but holds {entries - 1} records; it was "
                        "not completely written: fetch or write it again"
                    )
    except lmdb.Error as error:
        raise DataError(f"'{path}' is damaged ({error}); fetch it again") from error
    except DataError as error:
        if str(path) in str(error):
            raise
        raise DataError(f"'length' of '{path}' {error}") from error
    if length == 0:
        raise DataError(f"'{path}' holds no records; remove it or write it again")
    return length


class LmdbShards:
    """The records of several LMDB files by one running index.

    Handles are opened on first use in each process, so that the object may be pickled and may
    cross a fork; nothing is open after construction.

    Parameters
    ----------
    files : list of Path
        LMDB files, in order; their lengths may differ.

    Raises
    ------
    DataError
        If a file is damaged, truncated or empty.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = list(files)
        self.lengths: list[int] = []
        self._handles: dict[int, lmdb.Environment] = {}
        self._owner = os.getpid()
        for path in self.files:
            env = open_lmdb(path)
            try:
                self.lengths.append(count_records(env, path))
            finally:
                env.close()
        self._ends = np.cumsum(self.lengths).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_handles": {}}

    def locate(self, index: int) -> tuple[Path, int]:
        """Return the file of a record and its number inside that file."""
        shard = bisect.bisect_right(self._ends, index)
        return self.files[shard], index - (self._ends[shard] - self.lengths[shard])

    def describe(self, index: int) -> str:
        """Name a record for an error message."""
        path, local = self.locate(index)
        return f"record {local} of '{path}' (sample {index})"

    def read(self, index: int) -> bytes:
        """Return the pickled bytes of record ``index``.

        Raises
        ------
        IndexError
            If the index is out of range.
        DataError
            If the record is missing or the file is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)} samples")
        shard = bisect.bisect_right(self._ends, index)
        local = index - (self._ends[shard] - self.lengths[shard])
        try:
            with self._handle(shard).begin() as transaction:
                payload = transaction.get(str(local).encode("ascii"))
        except lmdb.Error as error:
            raise DataError(
                f"{self.describe(index)} cannot be read ({error}); fetch the file again"
            ) from error
        if payload is None:
            raise DataError(
                f"{self.describe(index)} is missing from the file; fetch or write it again"
            )
        return payload

    def close(self) -> None:
        """Close the handles of this process; the next read opens them again."""
        if self._owner == os.getpid():
            for env in self._handles.values():
                env.close()
        self._handles = {}

    def _handle(self, shard: int) -> lmdb.Environment:
        if self._owner != os.getpid():
            # LMDB handles must not be used across a fork: forget the parent's.
            self._handles, self._owner = {}, os.getpid()
        if shard not in self._handles:
            self._handles[shard] = open_lmdb(self.files[shard])
        return self._handles[shard]
