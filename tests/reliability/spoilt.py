"""Copies of the tiny set with something wrong in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from est_ocp.data import load_demo_frames, write_oc20_lmdb
from tests.training.launch import TRAIN_FRAMES

#: The record of the training set that is spoilt.
BAD = 7


def with_bad_record(tiny_data: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """Make ``folder`` the tiny set with one changed training record; return its identifier."""
    folder.mkdir()
    for split in tiny_data.iterdir():
        if split.name != "train":
            os.symlink(split, folder / split.name)
    records = list(load_demo_frames().of_split("train").records())
    chosen = [dict(r) for r in records[:: len(records) // TRAIN_FRAMES][:TRAIN_FRAMES]]
    change(chosen[BAD])
    write_oc20_lmdb(folder / "train", chosen)
    return f"{chosen[BAD]['sid']}_{chosen[BAD]['fid']}"
