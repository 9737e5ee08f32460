"""One file with all that a study's call found."""

from __future__ import annotations

import tarfile
from pathlib import Path

#: Of each run: what tells how it went, without weights.
SMALL = ("metrics.jsonl", "canonical_config.yaml", "results/predictions/metrics.json")


def pack(file: Path, page: Path, out: Path) -> int:
    """Write page, tables, logs and metrics into one compressed archive.

    Parameters
    ----------
    file : Path
        ``.tar.gz``.
    page, out : Path
        The study's folders of CSV files and of runs.

    Returns
    -------
    int
        Bytes.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    with tarfile.open(partial, "w:gz") as archive:
        for path in sorted(page.glob("*")):
            if path.is_file() and path.suffix in (".csv", ".md", ".png", ".txt"):
                archive.add(path, f"page/{path.name}")
        for path in sorted((out / "jobs").glob("*")):
            archive.add(path, f"jobs/{path.name}")
        for run in sorted((out / "runs").glob("*")):
            for name in SMALL:
                if (run / name).is_file():
                    archive.add(run / name, f"runs/{run.name}/{name}")
    partial.replace(file)
    return file.stat().st_size


def pack_runs(file: Path, out: Path, names: list[str]) -> int:
    """Write whole runs, checkpoints and all, into one archive, to go on elsewhere.

    Parameters
    ----------
    file : Path
        ``.tar.gz``.
    out : Path
    names : list of str
        Of runs in ``out/runs``.

    Returns
    -------
    int
        Bytes.
    """
    with tarfile.open(file, "w:gz", compresslevel=1) as archive:
        for name in names:
            run = out / "runs" / name
            archive.add(run / "metrics.jsonl", f"{name}/metrics.jsonl")
            archive.add(run / "checkpoints" / "final", f"{name}/checkpoints/final")
    return file.stat().st_size


def unpack_runs(file: Path, out: Path) -> list[str]:
    """Put runs of :func:`pack_runs` where the study goes on with them; return their names.

    Runs that are there already stay as they are.
    """
    folder = out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file) as archive:
        there = {path.name for path in folder.iterdir()}
        members = [m for m in archive.getmembers() if m.name.split("/")[0] not in there]
        archive.extractall(folder, members, filter="data")
    return sorted({member.name.split("/")[0] for member in members})
