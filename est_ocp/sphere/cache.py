"""Point sets that take seconds to compute are shipped with the package or kept on disk.

Looked up in order: files shipped in ``est_ocp/sphere/data``; the directory named by the environment
variable ``EST_OCP_CACHE``, or else ``~/.cache/est_ocp``; then they are computed, and written
there if possible.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from est_ocp.errors import ConfigError
from est_ocp.sphere.rule import check_points

#: To be raised whenever a change of an algorithm changes the points.
ALGORITHM_VERSION = 1
ENVIRONMENT_VARIABLE = "EST_OCP_CACHE"
SHIPPED = Path(__file__).parent / "data"

_UNREADABLE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)


def cache_directory() -> Path:
    """Directory of computed point sets; it need not exist.

    Returns
    -------
    Path
        ``$EST_OCP_CACHE``, or ``~/.cache/est_ocp`` where that is unset or empty.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(named) if named else Path(os.path.expanduser("~")) / ".cache" / "est_ocp"


def cache_file(kind: str, num_points: int) -> Path:
    """Path of a point set in the cache; its name holds a hash of all that determines it."""
    key = f"{kind}|{num_points}|{ALGORITHM_VERSION}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return cache_directory() / f"{kind}-{num_points}-{digest}.npz"


def shipped_file(kind: str, num_points: int) -> Path:
    """Path that a point set has if it is shipped with the package."""
    return SHIPPED / f"{kind}-{num_points}.npz"


def cached_points(kind: str, num_points: int, compute: Callable[[int], Tensor]) -> Tensor:
    """Points of equal weight from the shipped files, the cache, or else computed.

    Many processes may call this at once: files appear whole, and all processes end up with the
    points of the one that was first to write them.

    Parameters
    ----------
    kind : str
        Name of the rule.
    num_points : int
        S.
    compute : callable
        Called with S if no valid file is found; returns unit vectors ``[S, 3]``, float64.

    Returns
    -------
    Tensor
        Unit vectors, ``[S, 3]``, float64.

    Warns
    -----
    UserWarning
        If a file is damaged (it is computed again and replaced) or the directory cannot be
        written (it is computed again by each process).
    """
    path = cache_file(kind, num_points)
    for candidate in (shipped_file(kind, num_points), path):
        points = _read_or_warn(candidate, num_points)
        if points is not None:
            return points
    points = compute(num_points)
    try:
        save_points(path, points, replace=_is_damaged(path, num_points))
        return load_points(path, num_points)
    except _UNREADABLE as error:
        warnings.warn(
            f"cannot keep the points of {kind}-{num_points} in {path.parent} ({error}); set "
            f"{ENVIRONMENT_VARIABLE} to a directory that can be written, or every process "
            "computes them again",
            stacklevel=3,
        )
        return points


def save_points(path: Path, points: Tensor, replace: bool = True) -> None:
    """Write a point set so that no reader ever sees part of a file.

    The file is written aside under another name and takes its own name in one step.

    Parameters
    ----------
    path : Path
        Destination; its directory is made.
    points : Tensor
        ``[S, 3]``, float64.
    replace : bool
        Whether to replace a file of that name; otherwise the first one written stays.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    array = points.numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, points=array, sha256=np.array(_digest(array)))
        os.chmod(temporary, 0o644)
        if replace or not _link(temporary, path):
            os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def load_points(path: Path, num_points: int) -> Tensor:
    """Read a point set and check it.

    Parameters
    ----------
    path : Path
        A file written by `save_points`.
    num_points : int
        Number of points that it must hold.

    Returns
    -------
    Tensor
        Unit vectors, ``[S, 3]``, float64.

    Raises
    ------
    OSError
        If there is no such file or it cannot be read.
    ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error
        If it is damaged.
    """
    # from memory, so that a damaged archive leaves no open file behind
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
        array, digest = stored["points"], str(stored["sha256"])
    if array.shape != (num_points, 3) or array.dtype != np.float64 or _digest(array) != digest:
        raise ConfigError(f"{path} does not hold the {num_points} points it was written with")
    points = torch.from_numpy(array)
    weights = torch.full((num_points,), 1 / num_points, dtype=torch.float64, device="cpu")
    check_points(points, weights, path.name)
    return points


def _link(source: str, path: Path) -> bool:
    """Give a file its name unless the name is taken; False where links are not supported."""
    try:
        os.link(source, path)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


def _is_damaged(path: Path, num_points: int) -> bool:
    try:
        load_points(path, num_points)
    except FileNotFoundError:
        return False
    except _UNREADABLE:
        return True
    return False


def _read_or_warn(path: Path, num_points: int) -> Tensor | None:
    try:
        return load_points(path, num_points)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except _UNREADABLE as error:
        warnings.warn(
            f"{path} cannot be used ({type(error).__name__}: {error}); "
            "its points are computed again",
            stacklevel=4,
        )
        return None


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
