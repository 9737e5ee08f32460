"""The embedded demonstration set as OC20-format folders.

Its labels are CHGNet 0.4.2's, a universal potential, not DFT: it shows that training, evaluation
and their tools work, and compares models with each other; it says nothing about catalysis.
``scripts/make_demo_set.py`` makes it; docs/data.md gives its statistics.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

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
    """Write the demonstration set as S2EF folders, unless it is there and whole.

    Parameters
    ----------
    out_dir : path
        Gets ``{train,val_id,val_ood_ads,val_ood_cat,val_ood_both}/data.0000.lmdb`` with
        ``metadata.npz``, and ``demo.json`` with the content's hash.
    path : path
        Another packed file made by ``scripts/make_demo_set.py``.

    Returns
    -------
    dict of str to Path
        The folder of every split.
    """
    out_dir, path = Path(out_dir), Path(path)
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    stamp = out_dir / "demo.json"
    folders = {split: out_dir / split for split in SPLITS}
    if _is_whole(stamp, content, folders):
        logger.info("the demonstration set in '%s' is up to date", out_dir)
        return folders
    stamp.unlink(missing_ok=True)
    frames = load_demo_frames(path)
    counts = {}
    for split, folder in folders.items():
        records = list(frames.of_split(split).records())
        write_oc20_lmdb(folder, records, overwrite=True)
        counts[split] = len(records)
    partial = stamp.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(
        json.dumps({"content": content, "frames": counts, "source": frames.source}, indent=2) + "\n"
    )
    os.replace(partial, stamp)
    return folders


def _is_whole(stamp: Path, content: str, folders: dict[str, Path]) -> bool:
    """Tell whether the folders hold this content in full."""
    try:
        written = json.loads(stamp.read_text())
        if written["content"] != content:
            return False
        for split, folder in folders.items():
            length = len(LmdbShards([folder / "data.0000.lmdb"]))
            if length != written["frames"][split]:
                return False
            load_natoms(folder / "metadata.npz", length)
    except (OSError, ValueError, KeyError, DataError):
        return False
    return True
