"""Numbers of atoms by sample: what samplers need without reading the structures.

They live in ``metadata.npz`` (integer ``natoms``) beside the shards, as fairchem keeps them. When
missing they are counted in one pass and written; ``python -m est_ocp.data.metadata FOLDER
--workers 16`` does this ahead of a first run on a large set.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import logging
import math
import multiprocessing
import os
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from est_ocp.data.shards import LmdbShards, expand_path, find_shards
from est_ocp.data.unpickle import count_atoms
from est_ocp.errors import ARCHIVE_ERRORS, DataError

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return ``$EST_OCP_CACHE``, or ``~/.cache/est_ocp``."""
    return expand_path(os.environ.get("EST_OCP_CACHE") or "~/.cache/est_ocp")


def metadata_path(shards: LmdbShards) -> Path:
    """Return where the metadata of these shards is looked for first.

    It is ``metadata.npz`` in their folder. One file chosen out of a folder of several has its own,
    ``<stem>.metadata.npz``, since the folder's describes all of them.
    """
    folder = shards.files[0].parent
    if len(shards.files) == 1 and len(list(folder.glob("*.lmdb"))) > 1:
        return folder / f"{shards.files[0].stem}.metadata.npz"
    return folder / "metadata.npz"


def natoms_of(shards: LmdbShards, path: str | os.PathLike[str] | None = None) -> np.ndarray:
    """Return the number of atoms of every sample, counting them only where no file says so.

    Parameters
    ----------
    shards : LmdbShards
        The dataset's files.
    path : path, optional
        A metadata file to use. Without it, :func:`metadata_path`, then the cache folder; when
        neither is there the samples are counted and the result is kept in the first of the two
        that can be written. Processes of one machine or shared folder count once: the others wait.

    Returns
    -------
    ndarray, int64 [number of samples]

    Raises
    ------
    DataError
        If a metadata file is unreadable, of another length or of other structures, or a record
        is damaged.
    """
    if path is not None:
        given = expand_path(path)
        if not given.is_file():
            raise DataError(f"there is no metadata file '{given}'; correct metadata_path")
        return load_natoms(given, len(shards))

    beside, cached = metadata_path(shards), cache_path(shards)
    if beside.is_file():
        return _load_checked(beside, shards)
    with file_lock(cached.with_suffix(".lock")):
        for candidate in (beside, cached):
            if candidate.is_file():
                return _load_checked(candidate, shards)
        logger.warning("no metadata.npz for '%s': counting atoms once", shards.files[0].parent)
        natoms = count_all(shards)
        for candidate in (beside, cached):
            try:
                save_natoms(candidate, natoms)
                break
            except OSError as error:
                logger.warning("cannot write '%s' (%s)", candidate, error)
    return natoms


def load_natoms(path: Path, length: int) -> np.ndarray:
    """Read and check a metadata file.

    Raises
    ------
    DataError
        If it is unreadable, has no positive integer ``natoms``, or is of another length.
    """
    remedy = "delete it to have it made again"
    try:
        with np.load(path, allow_pickle=False) as stored:
            natoms = np.asarray(stored["natoms"]).reshape(-1)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"'{path}' has no readable 'natoms' ({error}); {remedy}") from error
    except Exception as error:
        # A truncated zip archive raises zipfile's and zlib's own errors.
        raise DataError(f"'{path}' is damaged ({error}); {remedy}") from error
    _compare_lengths(path, natoms.shape[0], length)
    whole = natoms.astype(np.int64) if natoms.dtype.kind in "iuf" else np.zeros(1, np.int64)
    if not np.array_equal(whole, natoms) or (whole <= 0).any():
        raise DataError(f"natoms of '{path}' are not positive whole numbers; {remedy}")
    return whole


def check_length(shards: LmdbShards) -> None:
    """Compare the number of samples with the metadata file beside the shards, if there is one.

    Only the file's header is read. A file that cannot be read is reported when it is needed.

    Raises
    ------
    DataError
        If the numbers differ: the last shards may be missing, which their names do not tell.
    """
    path = metadata_path(shards)
    try:
        with zipfile.ZipFile(path) as archive, archive.open("natoms.npy") as stream:
            np.lib.format.read_magic(stream)
            shape, _, _ = np.lib.format.read_array_header_1_0(stream)
    except ARCHIVE_ERRORS:
        return
    _compare_lengths(path, math.prod(shape), len(shards))


def _compare_lengths(path: Path, described: int, length: int) -> None:
    if described != length:
        raise DataError(
            f"'{path}' describes {described} samples but the shards hold {length}; fetch the "
            "shards that are missing, or delete it to have it made again"
        )


def _load_checked(path: Path, shards: LmdbShards) -> np.ndarray:
    """Read a metadata file and compare a few of its numbers with the records."""
    natoms = load_natoms(path, len(shards))
    for index in np.unique(np.linspace(0, len(shards) - 1, 5).astype(int)).tolist():
        try:
            count = _count_one(shards, index)
        except DataError:
            continue  # A damaged record is reported when it is read.
        if natoms[index] != count:
            raise DataError(
                f"'{path}' says natoms = {natoms[index]} for {shards.describe(index)}, which has "
                f"{count}; it is of other structures: delete it to have it made again"
            )
    shards.close()
    return natoms


def save_natoms(path: Path, natoms: np.ndarray) -> None:
    """Write a metadata file so that a reader never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".metadata-", suffix=".npz")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, natoms=np.asarray(natoms, dtype=np.int64))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def count_all(shards: LmdbShards, workers: int = 1) -> np.ndarray:
    """Count the atoms of every sample in one pass over the files.

    Parameters
    ----------
    shards : LmdbShards
        The dataset's files.
    workers : int
        Processes, each taking whole shards.

    Returns
    -------
    ndarray, int64 [number of samples]

    Raises
    ------
    DataError
        If a record cannot be read.
    """
    with tqdm(total=len(shards), desc="counting atoms", unit="sample", disable=None) as bar:
        counts = []
        for part in _parts(shards, workers):
            counts.append(part)
            bar.update(len(part))
    return np.concatenate(counts)


def _parts(shards: LmdbShards, workers: int) -> Iterator[np.ndarray]:
    if workers <= 1 or len(shards.files) == 1:
        step = 2048
        for start in range(0, len(shards), step):
            stop = min(start + step, len(shards))
            yield np.array([_count_one(shards, index) for index in range(start, stop)], np.int64)
        shards.close()
        return
    # Forked, since a new interpreter would import everything again; no file is open here.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(_count_file, shards.files)


def _count_file(path: Path) -> np.ndarray:
    shard = LmdbShards([path])
    return np.array([_count_one(shard, index) for index in range(len(shard))], np.int64)


def _count_one(shards: LmdbShards, index: int) -> int:
    payload = shards.read(index)
    try:
        return count_atoms(payload)
    except DataError as error:
        raise DataError(f"{shards.describe(index)} {error}") from error


def cache_path(shards: LmdbShards, kind: str = "natoms") -> Path:
    """Name a cache file of some kind by the paths, sizes and times of the shards."""
    digest = hashlib.sha256()
    for path in shards.files:
        status = path.stat()
        digest.update(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return cache_folder() / kind / f"{digest.hexdigest()[:32]}.npz"


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock, so that of several ranks one counts and the others wait.

    A lock needs no process group, cannot time out as a barrier does on a long pass, and is
    released if its holder dies. Where it cannot be had every process counts for itself.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("w")
        fcntl.flock(stream, fcntl.LOCK_EX)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        stream.close()


def main(arguments: list[str] | None = None) -> None:
    """Write ``metadata.npz`` beside the shards of a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("src", help="folder of data.*.lmdb, or one LMDB file")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    options = parser.parse_args(arguments)
    shards = LmdbShards(find_shards(options.src))
    natoms = count_all(shards, options.workers)
    save_natoms(metadata_path(shards), natoms)
    print(f"{metadata_path(shards)}: {len(natoms)} samples, {natoms.mean():.2f} atoms on average")


if __name__ == "__main__":
    main()
