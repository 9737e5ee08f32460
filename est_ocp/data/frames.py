"""Labelled frames of slabs with adsorbates, as flat arrays in one npz."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from est_ocp.errors import DataError

#: Splits in the order of OC20's tables.
SPLITS = ("train", "val_id", "val_ood_ads", "val_ood_cat", "val_ood_both")

#: Resolution of the packed form: Angstrom, eV/Angstrom.
POSITION_STEP = 1e-4
FORCE_STEP = 1e-3

_ATOM_ARRAYS = ("z", "pos", "forces", "tags", "fixed")


@dataclass(frozen=True)
class Frames:
    """Frames, their labels and where they come from; eV and Angstrom.

    By atom (all frames concatenated): ``z`` uint8, ``pos`` and ``forces`` float32 [., 3],
    ``tags`` uint8 (0 below the surface, 1 surface, 2 adsorbate), ``fixed`` bool. By frame:
    ``natoms``, ``energy``, ``cell`` [3, 3], ``sid`` (system), ``fid`` (frame of the system),
    ``split``, ``kind`` ("relax0", "relax1", ..., "rattle"), ``material``, ``surface``,
    ``adsorbate``. ``source`` says how the labels were made.
    """

    z: np.ndarray
    pos: np.ndarray
    forces: np.ndarray
    tags: np.ndarray
    fixed: np.ndarray
    natoms: np.ndarray
    energy: np.ndarray
    cell: np.ndarray
    sid: np.ndarray
    fid: np.ndarray
    split: np.ndarray
    kind: np.ndarray
    material: np.ndarray
    surface: np.ndarray
    adsorbate: np.ndarray
    source: str

    def __len__(self) -> int:
        return len(self.natoms)

    @property
    def offsets(self) -> np.ndarray:
        """First atom of every frame, and the number of atoms, [frames + 1]."""
        return np.concatenate([[0], np.cumsum(self.natoms, dtype=np.int64)])

    @property
    def atom_frame(self) -> np.ndarray:
        """Frame of every atom."""
        return np.repeat(np.arange(len(self)), self.natoms)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Frames:
        """Read a frames file (arrays of other names are left out).

        Raises
        ------
        DataError
            If it is not a frames file.
        """
        names = [field.name for field in fields(cls)]
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in names}
        except (OSError, KeyError, ValueError) as error:
            raise DataError(
                f"'{path}' is not a frames file ({error}); scripts/make_demo_set.py makes one"
            ) from error
        return cls(**{**arrays, "source": str(arrays["source"])})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a frames file at full precision."""
        np.savez_compressed(path, **vars(self))

    def select(self, index: np.ndarray) -> Frames:
        """Return the frames of ``index`` (numbers or a mask), in ascending order."""
        index = np.arange(len(self))[index]
        index = np.sort(index)
        kept = np.isin(self.atom_frame, index)
        chosen = {}
        for name, value in vars(self).items():
            chosen[name] = (
                value if name == "source" else value[kept if name in _ATOM_ARRAYS else index]
            )
        return Frames(**chosen)

    def of_split(self, split: str) -> Frames:
        """Return the frames of one split."""
        return self.select(self.split == split)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield every frame as :func:`~est_ocp.data.write_oc20_lmdb` takes it."""
        offsets = self.offsets
        for frame in range(len(self)):
            atoms = slice(offsets[frame], offsets[frame + 1])
            yield {
                "pos": self.pos[atoms],
                "atomic_numbers": self.z[atoms],
                "cell": self.cell[frame],
                "tags": self.tags[atoms],
                "fixed": self.fixed[atoms],
                "sid": int(self.sid[frame]),
                "fid": int(self.fid[frame]),
                "energy": float(self.energy[frame]),
                "forces": self.forces[atoms],
            }

    def largest_force(self) -> np.ndarray:
        """Return the largest |force component| on the free atoms of every frame."""
        largest = np.where(self.fixed, 0.0, np.abs(self.forces).max(axis=1))
        return np.maximum.reduceat(largest, self.offsets[:-1])

    def statistics(self) -> dict[str, dict[str, float]]:
        """Return sizes, label spreads and the errors of trivial predictors by split.

        ``energy_mad`` is the mean absolute error of always predicting the mean of the train
        energies; ``force_mae`` that of predicting zero forces on the free atoms.
        """
        train_mean = float(self.energy[self.split == "train"].mean())
        result = {}
        for split in SPLITS:
            part = self.of_split(split)
            if len(part) == 0:
                continue
            free = part.forces[~part.fixed]
            result[split] = {
                "systems": len(np.unique(part.sid)),
                "frames": len(part),
                "mean_atoms": float(part.natoms.mean()),
                "energy_mean": float(part.energy.mean()),
                "energy_std": float(part.energy.std()),
                "energy_mad": float(np.abs(part.energy - train_mean).mean()),
                "force_mae": float(np.abs(free).mean()),
                "force_rms": float(np.sqrt(np.square(free).mean())),
                "force_max": float(np.abs(free).max()),
            }
        return result


def pack(frames: Frames) -> dict[str, np.ndarray]:
    """Return the arrays of a small npz: quantised, and what a system's frames share kept once.

    Positions are stored as the system's first frame and displacements from it, which compress to
    about half. The frames of a system must be consecutive.
    """
    first = np.flatnonzero(np.r_[True, frames.sid[1:] != frames.sid[:-1]])
    if len(np.unique(frames.sid)) != len(first):
        raise DataError("the frames of a system are not consecutive; sort the frames by sid")
    system = np.cumsum(np.r_[False, frames.sid[1:] != frames.sid[:-1]])
    heads = frames.select(first)
    steps = np.rint(frames.pos / POSITION_STEP).astype(np.int32)
    head_steps = np.rint(heads.pos / POSITION_STEP).astype(np.int32)
    packed = {
        name: getattr(heads, name)
        for name in (
            "natoms",
            "z",
            "tags",
            "fixed",
            "cell",
            "sid",
            "material",
            "surface",
            "adsorbate",
        )
    }
    packed["split"] = np.array([SPLITS.index(name) for name in heads.split], np.uint8)
    packed["cell"] = heads.cell.astype(np.float32)
    packed["frames"] = np.bincount(system).astype(np.uint8)
    packed["fid"] = frames.fid.astype(np.uint8)
    packed["kind"] = frames.kind
    packed["energy"] = frames.energy.astype(np.float32)
    packed["head"] = head_steps.T
    packed["moved"] = (steps - head_steps[_head_atoms(heads, system)]).T
    packed["forces"] = np.rint(frames.forces / FORCE_STEP).astype(np.int32).T
    packed["source"] = np.array(frames.source)
    return packed


def unpack(packed: dict[str, np.ndarray]) -> Frames:
    """Return the frames that :func:`pack` stored, exact to its quantisation steps."""
    system = np.repeat(np.arange(len(packed["frames"])), packed["frames"])
    natoms = packed["natoms"]
    atoms = _head_atoms_of(natoms, system)
    steps = packed["head"].T[atoms] + packed["moved"].T
    by_system = {
        name: packed[name][system] for name in ("sid", "material", "surface", "adsorbate", "cell")
    }
    return Frames(
        z=packed["z"][atoms],
        pos=(steps * POSITION_STEP).astype(np.float32),
        forces=(packed["forces"].T * FORCE_STEP).astype(np.float32),
        tags=packed["tags"][atoms],
        fixed=packed["fixed"][atoms],
        natoms=natoms[system],
        energy=packed["energy"],
        fid=packed["fid"],
        kind=packed["kind"],
        split=np.array(SPLITS)[packed["split"][system]],
        source=str(packed["source"]),
        **by_system,
    )


def read_packed(path: str | os.PathLike[str]) -> Frames:
    """Read a packed file."""
    with np.load(Path(path), allow_pickle=False) as stored:
        return unpack(dict(stored))


def write_packed(path: str | os.PathLike[str], frames: Frames) -> None:
    """Write a packed file."""
    np.savez_compressed(Path(path), **pack(frames))


def _head_atoms(heads: Frames, system: np.ndarray) -> np.ndarray:
    return _head_atoms_of(heads.natoms, system)


def _head_atoms_of(natoms: np.ndarray, system: np.ndarray) -> np.ndarray:
    """Return, for every atom of all frames, its number among the atoms of all systems."""
    natoms = natoms.astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(natoms)[:-1]])
    counts = natoms[system]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts[system], counts) + within
