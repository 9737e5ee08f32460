"""The embedded 2,000 molecules of QM9, for tests and demonstrations without a download.

``scripts/make_qm9_subset.py`` makes the file; ``embedded/QM9.md`` states source and licence.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from est_ocp.data.qm9_molecules import Molecules
from est_ocp.qm9_targets import HARTREE, IN_HARTREE, TARGETS

SUBSET_FILE = Path(__file__).parent / "embedded" / "qm9_subset.npz"

#: Positions are kept to 1e-4 Angstrom, as gdb9.sdf has them.
_STEP = 1e-4
#: Labels as QM9 gives them, in whole multiples of their last digit.
_DIGITS = {
    "mu": 4, "alpha": 2, "homo": 4, "lumo": 4, "gap": 4, "r2": 4, "zpve": 6, "U0": 6, "U": 6,
    "H": 6, "G": 6, "Cv": 3,
}  # fmt: skip
_UNITS = np.array(
    [10.0 ** -_DIGITS[name] * (HARTREE if name in IN_HARTREE else 1.0) for name in TARGETS]
)


def pack_subset(molecules: Molecules, path: Path) -> None:
    """Write molecules as compressed whole numbers."""
    np.savez_compressed(
        path,
        index=molecules.index,
        natoms=molecules.natoms,
        numbers=molecules.numbers,
        pos=np.rint(molecules.pos.astype(np.float64).T / _STEP).astype(np.int32),
        targets=np.rint(molecules.targets.T / _UNITS[:, None]).astype(np.int32),
    )


def read_subset(path: Path = SUBSET_FILE) -> Molecules:
    """Return the embedded molecules, in QM9's order."""
    with np.load(path, allow_pickle=False) as stored:
        molecules = Molecules(
            stored["index"],
            stored["natoms"],
            stored["numbers"],
            stored["pos"].T * _STEP,
            stored["targets"].T * _UNITS,
        )
    molecules.check(f"'{path}'")
    return molecules
