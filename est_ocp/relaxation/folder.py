"""Results of relaxations on disk, written as they end, so that a restart goes on from there."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ase.io import Trajectory

from est_ocp.errors import ConfigError, DataError
from est_ocp.relaxation.relaxer import Relaxed

SETTINGS_FILE = "settings.json"
RELAXED_FILE = "relaxed.traj"
SUMMARY_FILE = "summary.csv"
#: Entry of ``atoms.info`` in the files.
NAME_KEY = "structure_name"


@dataclass(frozen=True)
class Row:
    """One line of the summary: :class:`~est_ocp.relaxation.Relaxed` without its structure."""

    name: str
    steps: int
    converged: bool
    energy_first: float
    energy_last: float
    fmax: float
    error: str

    @classmethod
    def of(cls, relaxed: Relaxed) -> Row:
        """Return the line of a result."""
        return cls(**{f.name: getattr(relaxed, f.name) for f in fields(cls)})

    def cells(self) -> dict[str, str]:
        """Return the line for ``summary.csv``, what is not known left empty."""
        numbers = {
            key: "" if math.isnan(value) else repr(value)
            for key, value in asdict(self).items()
            if isinstance(value, float)
        }
        return {**asdict(self), **numbers, "converged": "yes" if self.converged else "no"}


class RelaxationFolder:
    """A folder of relaxed structures.

    ``parts/K-of-N.{traj,jsonl}`` are appended to while part K of N works; ``relaxed.traj`` and
    ``summary.csv`` are made of them, in the order of the input, when all parts are done.

    Parameters
    ----------
    path : path
    settings : mapping
        What the results depend on; JSON can hold it.
    part : (int, int)
        K and N, K from 1 to N: this process relaxes every N-th structure.

    Raises
    ------
    ConfigError
        If the folder has results of other settings, or the part has no meaning.
    """

    def __init__(
        self, path: str | Path, settings: Mapping[str, Any], part: tuple[int, int] = (1, 1)
    ) -> None:
        if not 1 <= part[0] <= part[1]:
            raise ConfigError(f"part {part[0]}/{part[1]} does not exist; parts are 1/N to N/N")
        self.path = Path(path)
        self.part = part
        self.parts = self.path / "parts"
        stamp = self.path / SETTINGS_FILE
        settings = json.loads(json.dumps(settings))
        if stamp.is_file():
            before = _read_json(stamp)
            changed = [k for k in {**settings, **before} if before.get(k) != settings.get(k)]
            if changed:
                raise ConfigError(
                    f"{self.path} has results of other settings ({', '.join(sorted(changed))}); "
                    "name another --out, or remove the folder to start again"
                )
        self.parts.mkdir(parents=True, exist_ok=True)
        _replace(stamp, json.dumps(settings, indent=2) + "\n")
        self._stem = self.parts / f"{part[0]}-of-{part[1]}"

    def rows(self) -> dict[str, Row]:
        """Return what has been done so far, by name; a failure is overruled by a later success."""
        rows: dict[str, Row] = {}
        for file in sorted(self.parts.glob("*.jsonl")):
            for line in file.read_text().splitlines():
                try:
                    row = Row(**json.loads(line))
                except (ValueError, TypeError):
                    continue  # cut off when the process was killed
                if row.name not in rows or not row.error:
                    rows[row.name] = row
        return rows

    def left(self, names: Sequence[str]) -> list[str]:
        """Return this part's structures that are not done; those that failed are tried again."""
        done = {name for name, row in self.rows().items() if not row.error}
        mine = names[self.part[0] - 1 :: self.part[1]]
        return [name for name in mine if name not in done]

    def add(self, relaxed: Relaxed) -> Row:
        """Write one result."""
        row = Row.of(relaxed)
        if relaxed.atoms is not None:
            relaxed.atoms.info[NAME_KEY] = relaxed.name
            with Trajectory(self._stem.with_suffix(".traj"), "a") as trajectory:
                trajectory.write(relaxed.atoms)
        # The new line first: the line before may have been cut off.
        with self._stem.with_suffix(".jsonl").open("a") as stream:
            stream.write("\n" + json.dumps(asdict(row)))
        return row

    def join(self, names: Sequence[str]) -> dict[str, Row]:
        """Write ``relaxed.traj`` and ``summary.csv``, in the order of ``names``.

        Returns
        -------
        dict of str to Row
            What has been done. If that is not all, other parts are at work and nothing is written.
        """
        done = self.rows()
        rows = {name: done[name] for name in names if name in done}
        if len(rows) < len(names):
            return rows
        self._join_structures([name for name, row in rows.items() if not row.error])
        partial = self.path / f".{SUMMARY_FILE}.{os.getpid()}.partial"
        with partial.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, [f.name for f in fields(Row)])
            writer.writeheader()
            writer.writerows(row.cells() for row in rows.values())
        partial.replace(self.path / SUMMARY_FILE)
        return rows

    def _join_structures(self, names: Sequence[str]) -> None:
        readers = [Trajectory(file) for file in sorted(self.parts.glob("*.traj"))]
        where = {
            reader[i].info[NAME_KEY]: (reader, i) for reader in readers for i in range(len(reader))
        }
        partial = self.path / f".{RELAXED_FILE}.{os.getpid()}.partial"
        with Trajectory(partial, "w") as trajectory:
            for name in names:
                if name not in where:
                    raise DataError(
                        f"{self.parts} lacks the structure '{name}' that its table lists; remove "
                        "the folder and start again"
                    )
                reader, i = where[name]
                trajectory.write(reader[i])
        partial.replace(self.path / RELAXED_FILE)
        for reader in readers:
            reader.close()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise DataError(f"{path} is damaged; remove the folder and start again") from None


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(path)
