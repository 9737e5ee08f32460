"""What the demonstration set derives from its frames: IS2RE records, and splits without labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from est_ocp.data.frames import SPLITS, Frames

#: Splits without labels, in the order of OC20's tables.
TEST_SPLITS = tuple(split.replace("val", "test") for split in SPLITS if split.startswith("val"))

#: Displacements in the splits without labels, Angstrom in each component.
TEST_RATTLE = 0.05

#: Added to a system's sid in the splits without labels.
TEST_SID = 1_000_000


def relaxation_records(frames: Frames) -> Iterator[dict[str, Any]]:
    """Yield IS2RE records: the first and the last frame of each system's relaxation.

    The embedded relaxations are six steps long, so "relaxed" means the last frame of a short
    relaxation. Systems without their first frame (it had too large forces) are left out.

    Parameters
    ----------
    frames : Frames
        Those of one split, the frames of a system in order.

    Yields
    ------
    dict
        As :func:`~est_ocp.data.write_oc20_lmdb` takes it for ``task="is2re"``.
    """
    ends: dict[int, list[dict[str, Any]]] = {}
    for kind, record in zip(frames.kind, frames.records(), strict=True):
        started = record["sid"] in ends
        if kind == "relax0" or (started and kind.startswith("relax")):
            ends.setdefault(record["sid"], []).append(record)
    for path in ends.values():
        first, last = path[0], path[-1]
        if first is not last:
            yield _structure(first) | {
                "sid": first["sid"],
                "y_init": first["energy"],
                "y_relaxed": last["energy"],
                "pos_relaxed": last["pos"],
            }


def unlabelled_records(frames: Frames, with_fid: bool) -> Iterator[dict[str, Any]]:
    """Yield structures that nobody has labelled: each system's first frame, rattled anew.

    Free atoms get normal displacements of :data:`TEST_RATTLE`, drawn from the system's sid.

    Parameters
    ----------
    frames : Frames
        Those of one validation split, the frames of a system in order.
    with_fid : bool
        Give frame numbers (S2EF), or none (IS2RE).
    """
    seen = set()
    for record in frames.records():
        sid = record["sid"]
        if sid in seen:
            continue
        seen.add(sid)
        shift = np.random.default_rng(sid).normal(scale=TEST_RATTLE, size=record["pos"].shape)
        structure = _structure(record) | {"sid": TEST_SID + sid}
        structure["pos"] = record["pos"] + np.where(record["fixed"][:, None], 0.0, shift)
        yield structure | ({"fid": 0} if with_fid else {})


def _structure(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("pos", "atomic_numbers", "cell", "tags", "fixed")}
