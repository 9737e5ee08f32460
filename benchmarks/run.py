"""Measure the table of goals: training, inference, latency, memory, the EST block; and compare it.

    python benchmarks/run.py
    python benchmarks/run.py --stock FOLDER --check

Writes OUT/speed.csv row by row and prints the tables. Figures of the same card that were stored
with --store are compared; a loss of more than 5% is flagged, and is exit code 1 with --check.
Batches are random slabs of OC20's sizes, on the device beforehand; steps include the search for
neighbours. FOLDER holds fairchem-core 1.10.0's unpacked wheel (stock EquiformerV2-31M).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measuring import compare, peer_batches, plan
from measuring.machine import card_name, commit
from measuring.plan import Row, chosen, own_rows, stock_rows
from measuring.processes import records
from measuring.records import COLUMNS, CsvFile, number, read, write
from measuring.tables import block_table, figures_table, goals_table

FOLDER = Path(__file__).parent
#: Configs without and with --quick. The quick baseline has no config of its own.
MODELS = (("est_s2ef_8layer",), ("eqv2_31m",))
QUICK_MODELS = (
    ("est_s2ef_debug",),
    (
        "eqv2_31m", "model.backbone.num_layers=1", "model.backbone.channels=8",
        "model.backbone.lmax=1", "model.backbone.mmax=1", "model.backbone.graph.cutoff=4.0",
        "model.backbone.message.hidden_channels=8", "model.backbone.update.hidden_channels=8",
    ),
)  # fmt: skip
#: Seconds that a process may go on after the time, for the row that it is at.
GRACE = 20.0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder")
    parser.add_argument("--only", nargs="+", default=[], help="rows whose names begin so")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of a row")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if it is there")
    parser.add_argument(
        "--quick", action="store_true", help="tiny models and batches: a smoke test"
    )
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=None,
        help="compile all of our rows, or none; default: large batches in bf16, training in TF32",
    )  # fmt: skip
    parser.add_argument(
        "--graphs", action=argparse.BooleanOptionalAction, default=True,
        help="replay training steps of EST as CUDA graphs",
    )  # fmt: skip
    parser.add_argument("--stock", type=Path, help="unpacked wheel of fairchem-core 1.10.0")
    parser.add_argument("--minutes", type=float, default=9.0, help="no row begins after that")
    parser.add_argument("--add", action="store_true", help="keep rows of OUT/speed.csv")
    parser.add_argument("--in-process", action="store_true", help="our rows in this process")
    parser.add_argument("--commit", help="to be noted, where this is no git checkout")
    parser.add_argument(
        "--reference", type=Path, default=FOLDER / "reference", help="folder of stored figures"
    )
    parser.add_argument("--store", action="store_true", help="store this run's figures there")
    parser.add_argument("--check", action="store_true", help="exit code 1 on a loss over 5%%")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of the EST model, after --")
    arguments = parser.parse_args(argv)
    if arguments.device is None:
        import torch

        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    return arguments


def stock_records(
    rows: list[Row], arguments: argparse.Namespace, deadline: float
) -> Iterator[dict[str, Any]]:
    """Write the batches, then measure the stock model on them."""
    from measuring.own import structures

    file = arguments.out / "batches.pt"
    peer_batches.write(file, ((size, structures(size)) for size in {row.batch for row in rows}))
    command = [
        str(FOLDER / "stock.py"), str(arguments.stock), str(file),
        json.dumps([asdict(row) | {"name": row.name} for row in rows]), f"--deadline={deadline}",
        f"--device={arguments.device}", f"--steps={arguments.steps}",
    ]  # fmt: skip
    command += ["--quick"] if arguments.quick else []
    yield from records(command, rows, deadline + GRACE - time.time())
    file.unlink()


def own_records(
    rows: list[Row], arguments: argparse.Namespace, deadline: float
) -> Iterator[dict[str, Any]]:
    """Measure our rows, a process for each stretch of one precision."""
    est, baseline = QUICK_MODELS if arguments.quick else MODELS
    settings = {
        "device": arguments.device, "steps": arguments.steps, "deadline": deadline,
        "est": (*est, *arguments.overrides), "baseline": baseline,
    }  # fmt: skip
    if arguments.in_process:
        from measuring.own import Settings, measured

        yield from measured(rows, Settings(**settings))
        return
    for _, group in itertools.groupby(rows, key=lambda row: row.precision):
        some = list(group)
        listed = json.dumps([asdict(row) for row in some])
        command = [str(FOLDER / "own_rows.py"), listed, json.dumps(settings)]
        yield from records(command, some, deadline + GRACE - time.time())


def say(text: str) -> None:
    """A line about the progress."""
    print(text, file=sys.stderr, flush=True)


def measure_all(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure, writing the CSV on the way; returns this run's rows."""
    started = time.time()
    deadline = started + 60 * arguments.minutes
    sizes = plan.QUICK if arguments.quick else plan.Sizes()
    stock = stock_rows(sizes) if arguments.stock else []
    rows = chosen([*stock, *own_rows(sizes, arguments.compile, arguments.graphs)], arguments.only)
    stock = [row for row in rows if row.model == "stock"]
    own = [row for row in rows if row.model != "stock"]
    file = CsvFile(arguments.out / "speed.csv", COLUMNS, keep=arguments.add)
    note = {
        "commit": arguments.commit or commit(),
        "settings": " ".join(arguments.overrides),
    }

    def all_records() -> Iterator[dict[str, Any]]:
        if stock:
            yield from stock_records(stock, arguments, deadline)
        if own:
            yield from own_records(own, arguments, deadline)

    done: list[dict[str, Any]] = []
    kept = read(arguments.out / "speed.csv") if arguments.add else []
    rates = {r["name"]: number(r, "atoms_s") for r in kept if r["model"] == "stock"}
    for record in all_records():
        record |= note
        rate = number(record, "atoms_s")
        peer = rates.get(record["name"].replace(record["model"], "stock", 1))
        if record["model"] == "stock" and rate:
            rates[record["name"]] = rate
        elif rate and peer and record["mode"] in ("train", "infer"):
            record["times_stock"] = round(rate / peer, 3)
        file.add(record)
        done.append(record)
        what = record.get("error") or (f"{record['ms']} ms" if "ms" in record else "done")
        passed = time.time() - started
        say(f"[{len(done)}/{len(rows)}] {record['name']}: {what}, {passed:.0f} s since the start")
    return done


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, compare; returns the exit code."""
    arguments = parse(argv)
    rows = measure_all(arguments)
    everything = read(arguments.out / "speed.csv")
    print(
        f"{figures_table(everything)}\n\n{block_table(everything)}\n\n{goals_table(everything)}\n"
    )
    reference = compare.reference_file(arguments.reference, card_name(arguments.device))
    stored = read(reference)
    found = compare.changes(rows, stored)
    if not stored:
        print(f"No figures of this card are stored ({reference}); --store stores these.")
    for line in compare.lines(found):
        print(line)
    if arguments.store:
        write(reference, COLUMNS, [row for row in everything if not row["error"]])
        print(f"stored: {reference}")
    return 1 if arguments.check and any(change.worse for change in found) else 0


if __name__ == "__main__":
    sys.exit(main())
