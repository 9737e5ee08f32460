"""OC20's leaderboard file: one npz with the predictions of the four test splits.

Keys are ``{split}_ids``, ``{split}_energy`` and, for S2EF, ``{split}_forces`` and
``{split}_chunk_idx`` for the splits ``id``, ``ood_ads``, ``ood_cat`` and ``ood_both``. Two forms
are published: forces of all atoms with ``sid`` as identifiers, and forces of free atoms with
``sid_fid``; both are written and recognised here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from est_ocp.data.record_index import RecordIndex, first_duplicate
from est_ocp.errors import ConfigError, DataError
from est_ocp.evaluation.predictions import SplitPredictions, write_npz
from est_ocp.evaluation.submission_check import SPLITS, Summary, check_submission

FORCES = ("all", "free")
IDS = ("sid_fid", "sid")


def write_submission(
    path: str | Path,
    splits: Mapping[str, SplitPredictions],
    indexes: Mapping[str, RecordIndex] | None = None,
    forces: str = "all",
    ids: str | None = None,
    task: str | None = None,
) -> dict[str, Summary]:
    """Write a leaderboard file; it gets its name only when it has passed the check.

    Parameters
    ----------
    path : path
        Ends in ``.npz``.
    splits : mapping of str to SplitPredictions
        The splits of :data:`SPLITS`, of one task.
    indexes : mapping of str to RecordIndex, optional
        Of the data of each split, to compare with.
    forces : {"all", "free"}
        Atoms whose forces are written (S2EF).
    ids : {"sid_fid", "sid"}, optional
        Identifiers; default: ``sid_fid`` for S2EF, ``sid`` for IS2RE.
    task : {"s2ef", "is2re"}, optional
        Task of the data.

    Returns
    -------
    dict of str to Summary
        What :func:`check_submission` found.

    Raises
    ------
    ConfigError
        If an option has no meaning.
    DataError
        If a split is missing, or the file would be wrong; nothing is left behind then.
    """
    if Path(path).suffix != ".npz":
        raise ConfigError(f"a leaderboard file ends in .npz; '{path}' does not")
    if forces not in FORCES:
        raise ConfigError(f"forces must be one of {', '.join(FORCES)}, not '{forces}'")
    if ids is not None and ids not in IDS:
        raise ConfigError(f"ids must be one of {', '.join(IDS)}, not '{ids}'")
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        raise DataError(
            f"there are no predictions of the split 'test_{missing[0]}'; a leaderboard file needs "
            "all four test splits"
        )
    if len({splits[split].task for split in SPLITS}) > 1:
        raise DataError("some of these predictions have forces and some not; predict all anew")
    fields: dict[str, np.ndarray] = {}
    for split in SPLITS:
        fields |= _fields(split, splits[split], forces, ids)
    found: dict[str, Summary] = {}

    def check(partial: Path) -> None:
        expected = forces if splits["id"].task == "s2ef" else None
        found.update(check_submission(partial, indexes, expected, str(path), task))

    write_npz(path, fields, check)
    return found


def _fields(
    split: str, predictions: SplitPredictions, forces: str, ids: str | None
) -> dict[str, np.ndarray]:
    """Return one split's arrays."""
    names = predictions.ids
    s2ef = predictions.task == "s2ef"
    if s2ef and ids == "sid":
        names = np.array([name.rpartition("_")[0] or name for name in names.tolist()])
        repeated = first_duplicate(names)
        if repeated is not None:
            raise DataError(
                f"the split '{split}' holds several frames of the system '{names[repeated[0]]}', "
                "which the sid alone does not tell apart; use --ids sid_fid"
            )
    fields = {f"{split}_ids": names, f"{split}_energy": predictions.energy.astype(np.float32)}
    if s2ef:
        if forces == "free":
            predictions = predictions.free_atoms_only()
        fields[f"{split}_forces"] = predictions.forces.astype(np.float32)
        fields[f"{split}_chunk_idx"] = predictions.chunk_idx.astype(np.int64)
    return fields
