"""What a checkpoint's folder must hold: size and SHA-256 of every file, in ``saved.json``.

The list is written last, when all files are on the disk, so that a folder with a list that holds
is a whole checkpoint. It tells damage; it does not tell who wrote the files.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MANIFEST = "saved.json"


def write_manifest(folder: Path) -> None:
    """Bring a folder's files onto the disk and list them, the list last of all."""
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.name == MANIFEST:
            continue
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            os.fsync(stream.fileno())
        files[file.relative_to(folder).as_posix()] = [file.stat().st_size, digest]
    with (folder / MANIFEST).open("w") as stream:
        json.dump({"time_ns": time.time_ns(), "files": files}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    sync_folder(folder)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return what :func:`write_manifest` wrote; None if there is nothing.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    try:
        text = (folder / MANIFEST).read_bytes().decode()
    except FileNotFoundError:
        return None
    content = json.loads(text)
    files = content.get("files", {}) if isinstance(content, dict) else None
    if not isinstance(files, dict) or not isinstance(content.get("time_ns"), int):
        raise ValueError("not a list of files")
    if not all(isinstance(v, list) and len(v) == 2 for v in files.values()):
        raise ValueError("not a list of files")
    return content


def mismatch(
    folder: Path, names: Iterable[str] | None = None, hashes: bool = True
) -> tuple[bool, str | None]:
    """Compare a folder with its list.

    Parameters
    ----------
    folder : Path
    names : iterable of str, optional
        Only these files; default: all that are listed.
    hashes : bool
        Compare contents and not only sizes.

    Returns
    -------
    listed : bool
        Whether there is a list of files (earlier versions wrote none).
    problem : str or None
        What is wrong, for a message.
    """
    try:
        content = read_manifest(folder)
    except (OSError, ValueError):
        return True, f"{MANIFEST} is damaged"
    files = (content or {}).get("files")
    if not files:
        return False, None
    for name in files if names is None else [n for n in names if n in files]:
        size, digest = files[name]
        try:
            status = (folder / name).stat()
            if status.st_size != size:
                return True, f"{name} has {status.st_size} bytes instead of {size}"
            if hashes and _digest(folder / name, status.st_size, status.st_mtime_ns) != digest:
                return True, f"the contents of {name} have changed since it was written"
        except FileNotFoundError:
            return True, f"{name} is missing"
        except OSError as error:
            return True, f"{name} cannot be read ({error.strerror or error})"
    return True, None


@functools.lru_cache(maxsize=256)
def _digest(file: Path, size: int, modified_ns: int) -> str:
    """Return a file's SHA-256, read once for each state of the file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
