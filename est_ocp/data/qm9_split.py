"""The split of QM9: 110,000 for training, 10,000 for validation, the other 10,831 for the test.

It is the one that Equiformer's published results use: NumPy's ``default_rng(1)`` permutes the
130,831 molecules in QM9's order; the first 110,000 train, the next 10,000 validate. The file
``embedded/qm9_split.npz`` names the molecules of the last two parts by QM9's own numbers, so that
the split neither depends on the source nor on NumPy's version.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from est_ocp.data.qm9_sources import FULL_SIZE
from est_ocp.errors import DataError

SPLIT_FILE = Path(__file__).parent / "embedded" / "qm9_split.npz"
QM9_SPLITS = ("train", "val", "test")
SEED = 1
TRAIN_SIZE, VAL_SIZE = 110_000, 10_000

#: Largest number of a molecule in QM9.
_LAST = 133_885


def draw_split(index: np.ndarray, seed: int = SEED) -> dict[str, np.ndarray]:
    """Draw the split anew.

    Parameters
    ----------
    index : ndarray [130831]
        QM9's numbers of the molecules, ascending.
    seed : int

    Returns
    -------
    dict of str to ndarray
        Ascending numbers of ``train``, ``val`` and ``test``.
    """
    if len(index) != FULL_SIZE:
        raise DataError(f"the split is drawn from {FULL_SIZE} molecules, not {len(index)}")
    order = np.random.default_rng(seed).permutation(FULL_SIZE)
    parts = np.split(order, [TRAIN_SIZE, TRAIN_SIZE + VAL_SIZE])
    return {
        name: np.sort(index[part]).astype(np.int32)
        for name, part in zip(QM9_SPLITS, parts, strict=True)
    }


def save_split(parts: dict[str, np.ndarray], path: Path = SPLIT_FILE) -> None:
    """Write the numbers of validation and test, as differences, which compress well."""
    gaps = {name: np.diff(parts[name], prepend=0).astype(np.uint16) for name in QM9_SPLITS[1:]}
    np.savez_compressed(path, **gaps)


def load_split(path: Path = SPLIT_FILE) -> dict[str, np.ndarray]:
    """Return the ascending numbers of ``val`` and ``test``; all others train."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: np.cumsum(stored[name], dtype=np.int32) for name in QM9_SPLITS[1:]}


def part_of(index: np.ndarray) -> np.ndarray:
    """Return the split of molecules by QM9's numbers: 0 train, 1 val, 2 test.

    Raises
    ------
    DataError
        If a number is outside QM9's.
    """
    index = np.asarray(index)
    if len(index) and not (index.min() >= 1 and index.max() <= _LAST):
        raise DataError(f"molecule numbers are from 1 to {_LAST}, not {index.min()}..{index.max()}")
    table = np.zeros(_LAST + 1, dtype=np.uint8)
    for number, members in enumerate(load_split().values(), start=1):
        table[members] = number
    return table[index]
