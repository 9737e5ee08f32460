"""What is to be relaxed: ASE's files and OC20's IS2RE LMDBs, each structure with a name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import ase.io
import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

from est_ocp.data import OC20LmdbDataset
from est_ocp.data.record_index import record_index
from est_ocp.errors import DataError
from est_ocp.evaluation import SplitPredictions


class Source(Protocol):
    """Structures of one file or folder."""

    path: Path
    name: str
    names: list[str]

    def load(self, number: int) -> Atoms:
        """Return one structure."""


class FileSource:
    """The structures of a file that ASE reads; several frames are several structures.

    Constraints are those that the format keeps: .traj and VASP's files do, .cif does not.

    Attributes
    ----------
    name : str
        The file's name without its ending.
    names : list of str
        ``name`` for one structure, else ``name-0``, ``name-1``, ...

    Raises
    ------
    DataError
        If the file is missing or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            what = "holds no *.lmdb" if path.is_dir() else "does not exist"
            raise DataError(f"{path} {what}; name structure files or an IS2RE LMDB")
        try:
            self._atoms = ase.io.read(path, index=":")
        except Exception as error:
            # ASE's readers raise whatever their parsing meets.
            reason = str(error).strip().splitlines() or [""]
            raise DataError(
                f"{path} cannot be read as structures ({type(error).__name__}: {reason[0][:120]})"
            ) from error
        if not self._atoms:
            raise DataError(f"{path} holds no structures")
        self.path = path
        self.name = path.stem
        count = len(self._atoms)
        self.names = [self.name] if count == 1 else [f"{self.name}-{i}" for i in range(count)]

    def load(self, number: int) -> Atoms:
        """Return one structure, without the file's energies."""
        return self._atoms[number].copy()


class LmdbSource:
    """The initial structures of an OC20 IS2RE split; its fixed atoms get a ``FixAtoms``.

    Attributes
    ----------
    name : str
        The split: the folder's name for ``data.lmdb``, else the file's.
    names : list of str
        The ``sid`` of every structure.

    Raises
    ------
    DataError
        If the LMDB cannot be read, or a ``sid`` is there twice.
    """

    def __init__(self, path: Path) -> None:
        self.dataset = OC20LmdbDataset({"src": str(path), "task": "is2re"})
        self.path = path
        inside = path.is_dir() or path.name.startswith("data.")
        self.name = (path.absolute() if path.is_dir() else path.absolute().parent).name
        if not inside:
            self.name = path.stem
        index = record_index(self.dataset.shards, "is2re")
        twice = index.duplicate()
        if twice is not None:
            raise DataError(
                f"{path} has sid {index.ids[twice[0]]} twice (records {twice[0]} and {twice[1]}); "
                "a relaxation starts from IS2RE files, with one record a system"
            )
        self.names = [str(sid) for sid in index.ids]

    def load(self, number: int) -> Atoms:
        """Return one initial structure.

        Raises
        ------
        DataError
            If the record cannot be used.
        """
        data = self.dataset[number]
        atoms = Atoms(
            numbers=data.atomic_numbers.numpy(),
            positions=data.pos.double().numpy(),
            cell=data.cell[0].double().numpy(),
            pbc=data.pbc[0].numpy(),
            tags=data.tags.numpy(),
            info={"sid": self.names[number]},
        )
        fixed = np.flatnonzero(data.fixed.numpy())
        if len(fixed):
            atoms.set_constraint(FixAtoms(indices=fixed))
        return atoms

    def predictions(self, energies: Mapping[int, float]) -> SplitPredictions:
        """Return relaxed energies as predictions of the split.

        Parameters
        ----------
        energies : mapping of int to float
            Number of the structure to its relaxed energy, eV.
        """
        numbers = sorted(energies)
        records = [self.dataset[number] for number in numbers]
        labelled = bool(records) and all("energy" in record for record in records)
        fixed = [record.fixed.numpy() != 0 for record in records]
        return SplitPredictions(
            ids=np.array([self.names[number] for number in numbers], dtype=str),
            energy=np.array([energies[number] for number in numbers], dtype=np.float64),
            forces=None,
            natoms=np.array([len(record.pos) for record in records], dtype=np.int64),
            fixed=np.concatenate(fixed) if fixed else np.zeros(0, dtype=bool),
            energy_label=np.array([float(record.energy) for record in records])
            if labelled
            else None,
        )


def open_source(path: str | Path) -> FileSource | LmdbSource:
    """Return the source that a path means: an LMDB, or a file for ASE."""
    path = Path(path).expanduser()
    if path.suffix == ".lmdb" or (path.is_dir() and any(path.glob("*.lmdb"))):
        return LmdbSource(path)
    return FileSource(path)


def load_all(sources: Iterable[Source]) -> dict[str, partial[Atoms]]:
    """Return every structure's name and how to load it.

    Names that several sources share get the name of the source, or its folder, in front.

    Raises
    ------
    DataError
        If two structures would still have the same name.
    """
    sources = list(sources)
    splits = [source.name for source in sources if isinstance(source, LmdbSource)]
    if len(set(splits)) < len(splits):
        raise DataError(
            f"two LMDBs are both called '{max(splits, key=splits.count)}'; relax them one by one"
        )
    for prefix in (None, lambda s: s.name, lambda s: s.path.absolute().parent.name):
        named = [
            (name if prefix is None else f"{prefix(source)}-{name}", partial(source.load, number))
            for source in sources
            for number, name in enumerate(source.names)
        ]
        if len(dict(named)) == len(named):
            return dict(named)
    raise DataError(
        "two inputs have structures of the same name; rename a file or relax them one by one"
    )
