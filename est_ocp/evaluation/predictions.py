"""Predictions for one split, with their labels where there are any, as one npz file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from est_ocp.errors import ARCHIVE_ERRORS, DataError

#: Key of the npz that says what the predictions were made from.
_STAMP = "stamp"


@dataclass(frozen=True)
class SplitPredictions:
    """Predictions and labels of B structures with N atoms in all.

    Attributes
    ----------
    ids : array [B] of str
        ``sid`` or ``sid_fid`` of each structure.
    energy : array [B]
        Predicted energies, eV: of the structure (S2EF), or of its relaxed state (IS2RE).
    forces : array [N, 3] or None
        Predicted forces, eV/Angstrom, one structure after the other; None for IS2RE.
    natoms : array [B], int
        Atoms of each structure.
    fixed : array [N], bool
        Atoms that OC20 holds fixed; metrics leave them out.
    energy_label, forces_label : arrays [B] and [N, 3], or None
        Labels; None for a test set, and no forces for IS2RE.
    """

    ids: np.ndarray
    energy: np.ndarray
    forces: np.ndarray | None
    natoms: np.ndarray
    fixed: np.ndarray
    energy_label: np.ndarray | None = None
    forces_label: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def task(self) -> str:
        """``s2ef`` with forces, ``is2re`` without."""
        return "is2re" if self.forces is None else "s2ef"

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
            forces=None if self.forces is None else self.forces[free],
            natoms=np.bincount(owner[free], minlength=len(self)),
            fixed=self.fixed[free],
            forces_label=None if self.forces_label is None else self.forces_label[free],
        )

    def save(self, path: str | Path, stamp: Mapping[str, Any] | None = None) -> None:
        """Write the npz file (keys as the attributes, and ``chunk_idx`` where there are forces).

        It is renamed into place when it is whole.

        Parameters
        ----------
        path : path
            Ends in ``.npz``.
        stamp : mapping, optional
            What the predictions were made from, for :func:`read_stamp`; JSON can hold it.
        """
        fields = {name: value for name, value in vars(self).items() if value is not None}
        if self.forces is not None:
            fields["chunk_idx"] = self.chunk_idx
        if stamp is not None:
            fields[_STAMP] = np.array(json.dumps(stamp, sort_keys=True))
        write_npz(path, fields)

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
            predictions = cls(**{"forces": None, **fields})
            _check_sizes(predictions)
        except ARCHIVE_ERRORS as error:
            raise DataError(
                f"{path} is not a file of predictions ({error}); make it anew with "
                "`est-ocp evaluate` or `est-ocp predict`"
            ) from None
        return predictions


def read_stamp(path: str | Path) -> dict[str, Any] | None:
    """Return the stamp of a predictions file; None if there is no file, or none that is whole."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return json.loads(str(file[_STAMP]))
    except ARCHIVE_ERRORS:
        return None


def _check_sizes(predictions: SplitPredictions) -> None:
    """Raise a ValueError if arrays are of different numbers of structures or atoms."""
    structures, atoms = len(predictions.ids), int(np.sum(predictions.natoms))
    expected = {
        "energy": (structures,),
        "natoms": (structures,),
        "fixed": (atoms,),
        "energy_label": (structures,),
        "forces": (atoms, 3),
        "forces_label": (atoms, 3),
    }
    for name, shape in expected.items():
        array = getattr(predictions, name)
        if array is not None and array.shape != shape:
            raise ValueError(f"'{name}' has shape {list(array.shape)}, not {list(shape)}")


def write_npz(
    path: str | Path,
    fields: Mapping[str, np.ndarray],
    check: Callable[[Path], Any] | None = None,
) -> None:
    """Write a compressed npz file under another name and rename it when it is whole.

    Parameters
    ----------
    path : path
    fields : mapping of str to array
    check : callable, optional
        Called with the complete file before it gets its name; an error that it raises removes it.
    """
    path = Path(path)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez_compressed(stream, **fields)
        os.chmod(partial, 0o644)
        if check is not None:
            check(Path(partial))
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
