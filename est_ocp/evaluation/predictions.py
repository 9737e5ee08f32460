"""Predictions for one split, with their labels where there are any, as one npz file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from est_ocp.errors import DataError


@dataclass(frozen=True)
class SplitPredictions:
    """Predictions and labels of B structures with N atoms in all.

    Attributes
    ----------
    ids : array [B] of str
        ``sid`` or ``sid_fid`` of each structure.
    energy : array [B]
        Predicted energies, eV.
    forces : array [N, 3]
        Predicted forces, eV/Angstrom, one structure after the other.
    natoms : array [B], int
        Atoms of each structure in ``forces``.
    fixed : array [N], bool
        Atoms that OC20 holds fixed; metrics leave them out.
    energy_label, forces_label : arrays [B] and [N, 3], or None
        Labels; None for a test set.
    """

    ids: np.ndarray
    energy: np.ndarray
    forces: np.ndarray
    natoms: np.ndarray
    fixed: np.ndarray
    energy_label: np.ndarray | None = None
    forces_label: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def chunk_idx(self) -> np.ndarray:
        """Where ``forces`` splits between structures, as OC20's leaderboard wants it [B - 1]."""
        return np.cumsum(self.natoms)[:-1]

    def free_atoms_only(self) -> SplitPredictions:
        """Return the same without fixed atoms."""
        free = ~self.fixed
        owner = np.repeat(np.arange(len(self)), self.natoms)
        return replace(
            self,
            forces=self.forces[free],
            natoms=np.bincount(owner[free], minlength=len(self)),
            fixed=self.fixed[free],
            forces_label=None if self.forces_label is None else self.forces_label[free],
        )

    def save(self, path: str | Path) -> None:
        """Write the npz file (keys as the attributes, and ``chunk_idx``)."""
        labels = {
            name: value
            for name in ("energy_label", "forces_label")
            if (value := getattr(self, name)) is not None
        }
        np.savez_compressed(
            path,
            ids=self.ids,
            energy=self.energy,
            forces=self.forces,
            natoms=self.natoms,
            fixed=self.fixed,
            chunk_idx=self.chunk_idx,
            **labels,
        )

    @classmethod
    def load(cls, path: str | Path) -> SplitPredictions:
        """Read an npz file written by :meth:`save`.

        Raises
        ------
        DataError
            If the file is damaged or is something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                fields = {k: file[k] for k in file.files if k in cls.__dataclass_fields__}
            return cls(**fields)
        except (OSError, ValueError, TypeError, EOFError) as error:
            raise DataError(
                f"{path} is not a file of predictions ({error}); make it anew with "
                "`est-ocp evaluate`"
            ) from None
