"""QM9 as it is published: the CSVs of the package qm9pack, or the raw files that PyG downloads.

Both describe the same 133,885 molecules (Ramakrishnan et al., Sci. Data 1, 140022, 2014) without
the 3,054 whose geometry did not stay the same molecule. qm9pack gives positions with ten decimals,
gdb9.sdf with four: structures of the two differ by up to 5e-5 Angstrom, labels do not.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from est_ocp.data.qm9_molecules import Molecules
from est_ocp.errors import DataError
from est_ocp.qm9_targets import HARTREE, IN_HARTREE, TARGETS

#: Molecules of QM9 without the unconverged ones.
FULL_SIZE = 130_831

#: Columns of qm9pack for the targets in their order.
_PACK_COLUMNS = (
    "Dipole_debye", "Polarizability_bohr3", "HOMO_au", "LUMO_au", "HOMO_LUMO_gap_au", "R2_bohr2",
    "ZPVE_au", "InternalEnergy_0K_au", "InternalEnergy_298K_au", "Enthalphy_298K_au",
    "GibbsFreeEnergy_298K_au", "Heatcapacity_Cv_cal_mol_K",
)  # fmt: skip
_PACK_FILES = tuple(f"qm9_part{part}.csv" for part in (1, 2, 3))
#: Columns of gdb9.sdf.csv for the targets in their order.
_RAW_COLUMNS = (
    "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u298", "h298", "g298", "cv",
)  # fmt: skip
_RAW_FILES = ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt")
_NUMBER_OF = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
#: Labels of the sources to ours.
_FACTORS = np.array([HARTREE if name in IN_HARTREE else 1.0 for name in TARGETS])


class _Rows:
    """Collects molecules one by one."""

    def __init__(self) -> None:
        self.index: list[int] = []
        self.natoms: list[int] = []
        self.numbers: list[int] = []
        self.pos: list[Any] = []
        self.targets: list[list[float]] = []

    def add(self, index: int, symbols: list[str], pos: list[Any], targets: list[float]) -> None:
        if len(symbols) != len(pos):
            raise ValueError(f"molecule {index} has {len(symbols)} elements, {len(pos)} positions")
        self.index.append(index)
        self.natoms.append(len(symbols))
        self.numbers += [_NUMBER_OF[symbol] for symbol in symbols]
        self.pos += pos
        self.targets.append(targets)

    def molecules(self, where: str) -> Molecules:
        targets = np.array(self.targets, dtype=np.float64).reshape(-1, len(TARGETS)) * _FACTORS
        pos = np.array(self.pos, dtype=np.float64).reshape(-1, 3)
        result = Molecules(self.index, self.natoms, self.numbers, pos, targets)
        result.check(where)
        return result.take(np.argsort(result.index))


def read_qm9pack(source: str | Path | None = None) -> Molecules:
    """Read the CSVs of the package qm9pack.

    Parameters
    ----------
    source : path, optional
        The wheel (``pip download qm9pack==1.0.3 --no-deps``), the installed or unpacked package, or
        the folder of ``qm9_part{1,2,3}.csv``. Default: the installed package.

    Raises
    ------
    DataError
        If the files are missing or damaged.
    """
    path = _installed_qm9pack() if source is None else Path(source)
    rows, read = _Rows(), 0
    with tqdm(total=FULL_SIZE, desc="reading qm9pack", unit="molecule", disable=None) as bar:
        for name, stream in _pack_streams(path):
            read += _guarded(f"'{name}' of '{path}'", _read_pack_csv, stream, rows, bar)
    if not read:
        raise DataError(
            f"'{path}' holds no {_PACK_FILES[0]}; give --source the wheel of qm9pack 1.0.3 "
            "(pip download qm9pack==1.0.3 --no-deps) or the folder of its CSVs"
        )
    return rows.molecules(f"'{path}'")


def read_pyg_raw(source: str | Path | None = None) -> Molecules:
    """Read the raw files of torch_geometric's dataset QM9.

    Parameters
    ----------
    source : path
        Folder of ``gdb9.sdf``, ``gdb9.sdf.csv`` and ``uncharacterized.txt`` (or its parent, whose
        ``raw`` they are in).

    Raises
    ------
    DataError
        If a file is missing or damaged, or the files do not belong together.
    """
    if source is None:
        raise DataError("give --source the folder of gdb9.sdf, PyG's QM9/raw")
    folder = Path(source)
    if not (folder / _RAW_FILES[0]).is_file() and (folder / "raw").is_dir():
        folder = folder / "raw"
    missing = [name for name in _RAW_FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(f"'{folder}' lacks {', '.join(missing)}; name PyG's folder QM9/raw")
    sdf, table, failed = (folder / name for name in _RAW_FILES)
    with failed.open() as stream:
        left_out = _guarded(f"'{failed}'", _read_uncharacterized, stream)
    with table.open() as stream:
        targets = _guarded(f"'{table}'", _read_raw_csv, stream)
    rows = _Rows()
    with sdf.open() as stream:
        _guarded(f"'{sdf}'", _read_sdf, stream, rows, targets, left_out)
    return rows.molecules(f"'{folder}'")


def _guarded(where: str, read: Callable[..., Any], *arguments: Any) -> Any:
    """Call a reader, turning what damaged files raise into one clear error."""
    try:
        return read(*arguments)
    except (ValueError, KeyError, IndexError, csv.Error, StopIteration, EOFError) as e:
        reason = str(e) or type(e).__name__
        raise DataError(f"{where} cannot be read ({reason}); fetch it again") from e
    except zipfile.BadZipFile as e:
        raise DataError(f"{where} is damaged ({e}); fetch it again") from e


def _installed_qm9pack() -> Path:
    from importlib import metadata

    try:
        files = metadata.files("qm9pack") or []
    except metadata.PackageNotFoundError:
        raise DataError(
            "the package qm9pack is not installed; run `pip download qm9pack==1.0.3 --no-deps` and "
            "give --source the wheel, or use --from subset for a small set without a download"
        ) from None
    found = [file.locate() for file in files if file.name == _PACK_FILES[0]]
    if not found:
        raise DataError("the installed qm9pack has no CSVs; give --source its wheel")
    return Path(found[0]).parent


def _pack_streams(path: Path) -> Iterator[tuple[str, TextIO]]:
    if path.is_file():
        if not zipfile.is_zipfile(path):
            raise DataError(f"'{path}' is not a wheel (a zip file), or it is cut short")
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.rsplit("/", 1)[-1] in _PACK_FILES:
                    with archive.open(name) as raw:
                        yield name, io.TextIOWrapper(raw, "utf-8", newline="")
        return
    if not path.is_dir():
        raise DataError(f"there is no '{path}'; give --source qm9pack's wheel or folder")
    for folder in (path, path / "data", path / "qm9pack" / "data"):
        for name in _PACK_FILES:
            if (folder / name).is_file():
                with (folder / name).open(newline="") as stream:
                    yield name, stream


def _read_pack_csv(stream: TextIO, rows: _Rows, bar: tqdm) -> int:
    reader = csv.reader(stream)
    header = next(reader)
    lacking = {"Index", "Elements", "XYZ_Ang", *_PACK_COLUMNS} - set(header)
    if lacking:
        raise ValueError(f"it has no column {sorted(lacking)[0]}")
    index, elements, xyz = (header.index(name) for name in ("Index", "Elements", "XYZ_Ang"))
    columns = [header.index(name) for name in _PACK_COLUMNS]
    count = 0
    for row in reader:
        symbols = row[elements].strip("[]").replace("'", "").split(",")
        # Written by Mathematica: numbers such as `1.`, which JSON refuses.
        flat = [float(value) for value in row[xyz].replace("[", "").replace("]", "").split(",")]
        pos = [flat[start : start + 3] for start in range(0, len(flat), 3)]
        rows.add(int(row[index]), symbols, pos, [float(row[column]) for column in columns])
        count += 1
        if count % 1000 == 0:
            bar.update(1000)
    bar.update(count % 1000)
    return count


def _read_uncharacterized(stream: TextIO) -> set[int]:
    """Return the numbers of the molecules to leave out; the last line says how many they are."""
    numbers, stated = set(), None
    for line in stream:
        words = line.split()
        if not words or not words[0].isdigit():
            continue
        if words[1:2] == ["compounds"]:
            stated = int(words[0])
        else:
            numbers.add(int(words[0]))
    if stated is not None and stated != len(numbers):
        raise ValueError(f"it says {stated} compounds but lists {len(numbers)}")
    return numbers


def _read_raw_csv(stream: TextIO) -> dict[int, list[float]]:
    """Return the labels by QM9's number."""
    reader = csv.DictReader(stream)
    targets = {}
    for row in reader:
        number = int(row["mol_id"].removeprefix("gdb_"))
        targets[number] = [float(row[column]) for column in _RAW_COLUMNS]
    return targets


def _read_sdf(
    stream: TextIO, rows: _Rows, targets: dict[int, list[float]], left_out: set[int]
) -> None:
    """Read a V2000 file: title ``gdb_N``, two lines, counts, atoms, ..., ``$$$$``."""
    with tqdm(total=len(targets), desc="reading gdb9.sdf", unit="molecule", disable=None) as bar:
        while title := stream.readline().strip():
            number = int(title.removeprefix("gdb_"))
            stream.readline()
            stream.readline()
            count = int(stream.readline()[:3])
            atoms = [stream.readline().split()[:4] for _ in range(count)]
            for line in stream:
                if line.startswith("$$$$"):
                    break
            else:
                raise ValueError(f"molecule {number} is cut short")
            bar.update()
            if number not in left_out:
                pos = [[float(value) for value in atom[:3]] for atom in atoms]
                rows.add(number, [atom[3] for atom in atoms], pos, targets[number])
