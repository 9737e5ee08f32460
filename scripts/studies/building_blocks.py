"""EST's building blocks and mixture of experts on QM9 alpha, at equal steps, several seeds.

    est-ocp data qm9 --out data/qm9
    python scripts/studies/building_blocks.py --data data/qm9 --out runs/building_blocks \
        --page docs/results/building_blocks.md

The variants are data (``buildingblocks/variants.py``). A long-lived process a GPU trains one
variant after the other, its seeds side by side. Results are written as they come: the same command
again goes on with what is missing. What fails is reported and left out; ``--smoke`` tries every
variant on the embedded molecules.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from buildingblocks import runner
from buildingblocks.page import write_page
from buildingblocks.variants import BY_NAME, VARIANTS
from csv_rows import read


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    runner.add_options(parser)
    parser.add_argument("--only", nargs="+", choices=list(BY_NAME), help="variants, by name")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train what is missing until the time is over, then write the page; 1 if something failed."""
    arguments = parse(argv)
    deadline = runner.started() + 60 * arguments.minutes
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    page = arguments.page or out / "building_blocks.md"
    failed: list[str] = []
    if not arguments.report:
        protocol = runner.protocol_of(arguments)
        words = argv if argv is not None else sys.argv[1:]
        runner.note_origin(arguments, Path(__file__).name, words)
        chosen = [v for v in VARIANTS if not arguments.only or v.name in arguments.only]
        seeds = range(runner.seeds_of(arguments))
        wanted = [(v, seed, "steps", None) for v in chosen for seed in seeds]
        failed = runner.train(wanted, arguments, protocol, deadline)
    if read(out / runner.CSV):
        print(f"page: {write_page(page, out)}")
    if arguments.pack:
        runner.pack(out, arguments.pack)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
