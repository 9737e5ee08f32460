"""Equivariance error of EST-only networks on QM9 molecules against the points of the sphere.

    python scripts/studies/qm9_equivariance.py sweep --molecules 1000 --device cuda
    python scripts/studies/qm9_equivariance.py rotation
    python scripts/studies/qm9_equivariance.py trained --checkpoint RUN RUN
    python scripts/studies/qm9_equivariance.py page

``sweep``: untrained networks of 1 to 6 layers for every point set, L and precision. ``rotation``:
short trainings with and without random rotation of the points. ``trained``: checkpoints of S2EF or
QM9 models, their points exchanged. Each writes ``equivariance_PART.csv`` into ``--output``,
``sweep`` leaving the rows of other points, degrees and precisions that are there; ``page`` writes
the tables, fits and figures that they give, keeping the page's Reading.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

from equivariance.rotation_training import TrainingSettings, compare
from equivariance.sweep import DTYPES, Settings, cases, sweep
from equivariance.tables import read_csv, write_csv

from est_ocp.evaluation.machine import machine_info

PARTS = ("sweep", "rotation", "trained", "page")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--molecules", type=int, default=1000, help="of QM9's embedded 2,000")
    parser.add_argument("--batch", type=int, default=16, help="molecules at once")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--degrees", type=int, nargs="+", default=[1, 2, 4, 6])
    parser.add_argument("--precisions", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--sizes", type=int, nargs="+", default=[], help="S, beyond the usual, too")
    parser.add_argument("--layers", type=int, default=6, help="depth at L = 2")
    parser.add_argument("--other-layers", type=int, default=6, help="depth at other degrees")
    parser.add_argument("--steps", type=int, default=100, help="of each training of 'rotation'")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of 'rotation'")
    parser.add_argument("--test-molecules", type=int, default=64, help="rotated in 'rotation'")
    parser.add_argument("--checkpoint", nargs="+", default=[], help="runs of 'trained'")
    parser.add_argument("--structures", type=int, default=4, help="of S2EF, rotated in 'trained'")
    parser.add_argument("--rotations", type=int, default=4, help="of a structure")
    arguments = parser.parse_args(argv)
    if min(arguments.molecules, arguments.structures, arguments.test_molecules) < 2:
        parser.error("errors are relative to a spread over molecules; give two or more")
    return arguments


def record(out: Path, parts: Sequence[str], command: str) -> None:
    """Keep the command of parts beside their figures."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "equivariance_runs.json"
    runs = json.loads(file.read_text()) if file.is_file() else {}
    run = {"command": command} | machine_info()
    file.write_text(json.dumps(runs | dict.fromkeys(parts, run), indent=2) + "\n")


def sweep_with_others(out: Path, settings: Settings) -> Iterable[Mapping[str, Any]]:
    """Rows of points, degrees and precisions that are not measured now, then those that are."""
    file = out / "equivariance_sweep.csv"
    known = read_csv(file) if file.is_file() else []
    now = {(lmax, dtype, p.name, p.size) for lmax, dtype, p in cases(settings)}
    others = [r for r in known if (r["L"], r["dtype"], r["points"], r["S"]) not in now]
    return chain(others, sweep(settings))


def main(argv: Sequence[str] | None = None) -> None:
    """Run one part."""
    arguments = parse_arguments(argv)
    out, part = arguments.output, arguments.part
    if part == "page":
        from equivariance.page import write_page

        write_page(out)
        return
    parts = [part]
    command = " ".join(["python scripts/studies/qm9_equivariance.py", *(argv or sys.argv[1:])])
    if part == "sweep":
        names = ("molecules", "batch", "channels", "degrees", "precisions", "layers")
        names += ("other_layers", "device", "sizes")
        settings = Settings(**{name: getattr(arguments, name) for name in names})
        rows = sweep_with_others(out, settings)
        measured = product(settings.degrees, settings.precisions)
        some = f", S = {' '.join(map(str, settings.sizes))}" if settings.sizes else ""
        parts = [f"sweep, L = {degree}{some}, {precision}" for degree, precision in measured]
    elif part == "rotation":
        names = ("steps", "seeds", "batch", "test_molecules", "rotations", "device")
        rows = compare(TrainingSettings(**{name: getattr(arguments, name) for name in names}))
    else:
        from equivariance.trained import trained_errors

        rows = trained_errors(
            arguments.checkpoint,
            arguments.structures,
            arguments.molecules,
            arguments.rotations,
            arguments.device,
        )
    # First, so that an interrupted run leaves what its rows were made with.
    record(out, parts, command)
    write_csv(out / f"equivariance_{part}.csv", rows)


if __name__ == "__main__":
    main()
