"""Which k-fold symmetric structures does one EST layer tell apart, and does that need an error?

    python scripts/studies/expressiveness.py --out docs/results

Trains one EST layer, a tensor field layer and a MACE-style one with a linear classifier on two
structures with k-fold symmetry, one of them turned by half the angle (Joshi et al. 2023; the EST
paper's table 4), and measures the equivariance error beside the accuracy. Results are written as
they come: the same command again goes on with what is missing, and ``--minutes 0`` only writes
the page anew.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

import torch
from folds.page import write_page
from folds.plan import all_runs
from folds.report import KEYS, append, key_of, read
from folds.training import Protocol, execute


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of page, CSV and PNG")
    parser.add_argument("--seeds", type=int, default=10, help="of the table; others a third")
    parser.add_argument("--epochs", type=int, default=Protocol.epochs, help="at most")
    parser.add_argument("--folds", type=int, nargs="*", help="only these (default: all)")
    parser.add_argument("--degrees", type=int, nargs="*", help="only these (default: all)")
    parser.add_argument("--minutes", type=float, default=1e6, help="time after which to stop")
    return parser.parse_args(argv)


def shown_command(argv: list[str]) -> str:
    """Return the command for the page, without the time limit of its last call."""
    words = ["python", "scripts/studies/expressiveness.py", *argv]
    if "--minutes" in words:
        place = words.index("--minutes")
        del words[place : place + 2]
    if "--out" in words:
        words[words.index("--out") + 1] = "docs/results"
    return shlex.join(words)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, until the time is over, and write the page."""
    started = time.time()
    arguments = parse(argv)
    torch.set_num_threads(1)
    protocol = Protocol(epochs=arguments.epochs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "expressiveness.csv"
    done = {tuple(row[name] for name in KEYS) for row in read(file)}
    runs = all_runs(arguments.seeds)
    for number, run in enumerate(runs, start=1):
        skipped = (arguments.folds and run.fold not in arguments.folds) or (
            arguments.degrees and run.lmax not in arguments.degrees
        )
        if skipped or key_of(run) in done:
            continue
        if time.time() - started > 60 * arguments.minutes:
            break
        figures = execute(run, protocol)
        append(file, run, figures)
        print(
            f"[{number}/{len(runs)}] {run.part} {run.layer} L={run.lmax} fold {run.fold} "
            f"{run.kind} {run.points} seed {run.seed}: {figures['accuracy']:.0f}%, "
            f"{figures['epochs']} epochs, {figures['seconds']:.1f} s",
            flush=True,
        )
    page = arguments.out / "expressiveness.md"
    write_page(page, read(file), protocol, shown_command(argv or sys.argv[1:]))
    print(f"page: {page}")


if __name__ == "__main__":
    main()
