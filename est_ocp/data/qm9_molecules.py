"""Many small molecules as flat arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from est_ocp.errors import DataError
from est_ocp.qm9_targets import ELEMENTS, TARGETS


@dataclass
class Molecules:
    """Structures and labels of M molecules with N atoms in all.

    Attributes
    ----------
    index : ndarray [M], int32
        QM9's own number of a molecule, from 1; unique.
    natoms : ndarray [M], uint8
    numbers : ndarray [N], uint8
        Atomic numbers, molecule after molecule.
    pos : ndarray [N, 3], float32
        Angstrom.
    targets : ndarray [M, 12], float64
        In the order and units of :data:`est_ocp.qm9_targets.TARGETS`. Total energies in eV have
        five digits before the point: float32 would keep them to 1 meV only.
    """

    index: np.ndarray
    natoms: np.ndarray
    numbers: np.ndarray
    pos: np.ndarray
    targets: np.ndarray

    def __post_init__(self) -> None:
        kinds = {"index": "i4", "natoms": "u1", "numbers": "u1", "pos": "f4", "targets": "f8"}
        for name, kind in kinds.items():
            setattr(self, name, np.ascontiguousarray(getattr(self, name), dtype=kind))

    def __len__(self) -> int:
        return len(self.index)

    def check(self, where: str) -> None:
        """Refuse arrays that do not describe molecules of QM9.

        Raises
        ------
        DataError
            Naming the first molecule that is wrong.
        """
        atoms = int(self.natoms.sum(dtype=np.int64))
        shapes = (self.natoms.shape, self.targets.shape, self.numbers.shape, self.pos.shape)
        count = len(self)
        if shapes != ((count,), (count, len(TARGETS)), (atoms,), (atoms, 3)) or count == 0:
            raise DataError(f"{where} holds no molecules or arrays that do not fit each other")
        bad = ~np.isin(self.numbers, ELEMENTS) | ~np.isfinite(self.pos).all(1)
        owner = np.repeat(np.arange(count), self.natoms)
        wrong = (self.natoms == 0) | ~np.isfinite(self.targets).all(1)
        wrong[owner[bad]] = True
        if wrong.any():
            raise DataError(
                f"molecule {self.index[wrong][0]} of {where} has an element that QM9 lacks, or "
                "positions or labels that are not finite numbers; fetch the file again"
            )
        if len(np.unique(self.index)) != count:
            raise DataError(f"{where} holds a molecule twice; fetch the file again")

    def take(self, chosen: np.ndarray) -> Molecules:
        """Return some molecules, in the order of their positions ``chosen``."""
        chosen = np.asarray(chosen, dtype=np.int64)
        natoms = self.natoms.astype(np.int64)
        starts = np.cumsum(natoms) - natoms
        atoms = ragged_range(starts[chosen], natoms[chosen])
        return Molecules(
            self.index[chosen],
            self.natoms[chosen],
            self.numbers[atoms],
            self.pos[atoms],
            self.targets[chosen],
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def concatenate(parts: list[Molecules]) -> Molecules:
    """Join molecules of several parts."""
    names = [field.name for field in fields(Molecules)]
    return Molecules(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def ragged_range(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return ``starts[i], ..., starts[i] + counts[i] - 1`` for all i, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def composition(molecules: Molecules) -> np.ndarray:
    """Return the number of atoms of each of QM9's elements, float64 [M, 5]."""
    owner = np.repeat(np.arange(len(molecules)), molecules.natoms)
    column = np.searchsorted(ELEMENTS, molecules.numbers)
    flat = np.bincount(owner * len(ELEMENTS) + column, minlength=len(molecules) * len(ELEMENTS))
    return flat.reshape(len(molecules), len(ELEMENTS)).astype(np.float64)
