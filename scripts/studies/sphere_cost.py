"""Points on the sphere: time and memory against S and L, and accuracy against S and latency.

    est-ocp data qm9 --out data/qm9
    python scripts/studies/sphere_cost.py --data data/qm9 --out runs/sphere_cost \
        --page docs/results/sphere_cost.md

``--part cost`` measures EST's blocks and whole models and needs no data; ``--part train`` trains
the small base model of ``building_blocks.py`` with different numbers of points. Results are written
as they come: the same command again goes on with what is missing. What fails is reported and left
out.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from buildingblocks import runner
from csv_rows import append, read
from spherecost import accuracy
from spherecost.cost import COLUMNS, measure, release
from spherecost.page import COST, write_page
from spherecost.subjects import SUBJECTS, cases


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    runner.add_options(parser)
    parser.add_argument("--part", choices=("cost", "train", "all"), default="all")
    parser.add_argument(
        "--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS),
        help="whose cost is measured",
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure and train what is missing, then write the page; 1 if something failed."""
    arguments = parse(argv)
    deadline = runner.started() + 60 * arguments.minutes
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    if not arguments.report:
        words = argv if argv is not None else sys.argv[1:]
        runner.note_origin(arguments, Path(__file__).name, words)
        if arguments.part != "train":
            failed += measure_missing(arguments, deadline)
        if arguments.part != "cost":
            failed += train_missing(arguments, deadline)
    if read(out / COST) or read(out / runner.CSV):
        print(f"page: {write_page(arguments.page or out / 'sphere_cost.md', out)}")
    if arguments.pack:
        runner.pack(out, arguments.pack)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


def measure_missing(arguments: argparse.Namespace, deadline: float) -> list[str]:
    """Measure what the CSV does not hold; return the names of what failed."""
    import torch

    device = runner.devices_of(arguments)[0]
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
    card = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()}-core CPU"
    path = arguments.out / COST
    done = {(row["subject"], row["sweep"], row["S"], row["L"]) for row in read(path)}
    failed = []
    for case in cases(arguments.subjects, arguments.smoke):
        name = f"{case.subject}, S = {case.points}, L = {case.lmax}"
        if (case.subject, case.sweep, str(case.points), str(case.lmax)) in done:
            continue
        if time.time() > deadline:
            print(f"{name}: left for the next run", flush=True)
            continue
        try:
            row = measure(case, device, arguments.smoke)
        except Exception as error:
            failed.append(name)
            print(f"{name} failed: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
            release(device)
            continue
        release(device)
        append(path, COLUMNS, [row | {"card": card, "torch": torch.__version__}])
        print(
            f"{name}: {row['forward_ms']} ms forward, {row['train_ms']} training"
            f" ({row.get('train_graph_ms', '-')} as a graph), {row['memory_gib']} GiB",
            flush=True,
        )
    return failed


def train_missing(arguments: argparse.Namespace, deadline: float) -> list[str]:
    """Train at equal steps, then at equal time; return the names of what failed."""
    protocol = runner.protocol_of(arguments)
    failed = runner.train(
        accuracy.at_equal_steps(runner.seeds_of(arguments)), arguments, protocol, deadline
    )
    wanted = accuracy.at_equal_time(
        read(arguments.out / runner.CSV), runner.seeds_of(arguments), protocol
    )
    return failed + runner.train(wanted, arguments, protocol, deadline)


if __name__ == "__main__":
    sys.exit(main())
