"""The embedded demonstration set as OC20-format folders.

Its labels are CHGNet 0.4.2's, a universal potential, not DFT: it shows that training, evaluation
and their tools work, and compares models with each other; it says nothing about catalysis.
``scripts/make_demo_set.py`` makes it; docs/data.md gives its statistics. S2EF folders hold the
frames; IS2RE folders and the test splits are derived from them (:mod:`est_ocp.data.demo_splits`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from est_ocp.data.demo_splits import TEST_SPLITS, relaxation_records, unlabelled_records
from est_ocp.data.frames import SPLITS, Frames, read_packed
from est_ocp.data.metadata import load_natoms
from est_ocp.data.shards import LmdbShards
from est_ocp.data.write_lmdb import write_oc20_lmdb
from est_ocp.errors import DataError

logger = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parent / "embedded" / "demo_s2ef.npz"


def load_demo_frames(path: str | os.PathLike[str] = EMBEDDED) -> Frames:
    """Return the embedded frames.

    Parameters
    ----------
    path : path
        Another packed file made by ``scripts/make_demo_set.py``.
    """
    return read_packed(path)


def write_demo_set(
    out_dir: str | os.PathLike[str], path: str | os.PathLike[str] = EMBEDDED
) -> dict[str, Path]:
    """Write the demonstration set as S2EF and IS2RE folders, unless it is there and whole.

    Parameters
    ----------
    out_dir : path
        Gets ``{train,val_id,val_ood_ads,val_ood_cat,val_ood_both}/data.0000.lmdb`` (S2EF),
        ``test_*/data.0000.lmdb`` (S2EF without labels), ``is2re/<split>/data.lmdb`` for all of
        these splits, each with ``metadata.npz``, and ``demo.json`` with the content's hash.
    path : path
        Another packed file made by ``scripts/make_demo_set.py``.

    Returns
    -------
    dict of str to Path
        The folder of every split; the names of IS2RE splits begin with ``is2re/``.
    """
    out_dir, path = Path(out_dir), Path(path)
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    stamp = out_dir / "demo.json"
    names = (*SPLITS, *TEST_SPLITS)
    folders = {name: out_dir / name for name in (*names, *(f"is2re/{name}" for name in names))}
    if _is_whole(stamp, content, folders):
        logger.info("the demonstration set in '%s' is up to date", out_dir)
        return folders
    stamp.unlink(missing_ok=True)
    frames = load_demo_frames(path)
    counts = {}
    for name, folder in folders.items():
        records = _records(frames, name)
        write_oc20_lmdb(folder, records, task=_task(name), overwrite=True)
        counts[name] = len(records)
    partial = stamp.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(
        json.dumps({"content": content, "frames": counts, "source": frames.source}, indent=2) + "\n"
    )
    os.replace(partial, stamp)
    return folders


def _task(name: str) -> str:
    return "is2re" if name.startswith("is2re/") else "s2ef"


def _records(frames: Frames, name: str) -> list[dict[str, Any]]:
    """Return the records of one folder."""
    split, is2re = name.removeprefix("is2re/"), _task(name) == "is2re"
    if split in TEST_SPLITS:
        labelled = frames.of_split(split.replace("test", "val"))
        return list(unlabelled_records(labelled, with_fid=not is2re))
    part = frames.of_split(split)
    return list(relaxation_records(part) if is2re else part.records())


def _is_whole(stamp: Path, content: str, folders: dict[str, Path]) -> bool:
    """Tell whether the folders hold this content in full."""
    try:
        written = json.loads(stamp.read_text())
        if written["content"] != content:
            return False
        for name, folder in folders.items():
            file = "data.lmdb" if _task(name) == "is2re" else "data.0000.lmdb"
            length = len(LmdbShards([folder / file]))
            if length != written["frames"][name]:
                return False
            load_natoms(folder / "metadata.npz", length)
    except (OSError, ValueError, KeyError, DataError):
        return False
    return True
