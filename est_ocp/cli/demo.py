"""``est-ocp demo``: from nothing to a report in a few minutes on two processor cores."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from est_ocp.errors import ESTError

#: Marks the progress bar's lines in fairchem's log.
PROGRESS = ":est_ocp.progress:"
NOTE = (
    "Demonstration on slabs with adsorbates that are labelled by the universal potential CHGNet, "
    "not by DFT: it shows that the parts work together, not what the model reaches on OC20."
)
#: Config of the training where the repository's own, ``configs/demo/s2ef.yml``, is not at hand.
ENTRY = """hydra:
  searchpath: [pkg://est_ocp.configs]
defaults:
  - demo_s2ef
  - _self_
"""
#: A few hundred structures are predicted sooner than a second process has started.
ONE_PROCESS = ["job.scheduler.ranks_per_node=1"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("--out", default="demo", help="folder for everything (%(default)s)")
    parser.add_argument(
        "overrides", nargs="*", help="Hydra overrides of the training, e.g. steps=100"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration."""
    out = Path(arguments.out)
    started = time.perf_counter()
    from est_ocp.data import write_demo_set

    _say("1/4  data", f"est-ocp data demo --out {out / 'data'}")
    write_demo_set(out / "data")

    run_id = time.strftime("%Y%m%d-%H%M%S")
    run_dir = out / "runs" / run_id
    own = Path("configs/demo/s2ef.yml")
    config = own if own.is_file() else write_entry(out)
    train, train_again = (
        [
            "fairchem",
            "--config",
            str(config),
            f"data.root={out / 'data'}",
            f"job.run_dir={out / 'runs'}",
            f"job.timestamp_id={name}",
            *arguments.overrides,
        ]
        for name in (run_id, "repeat")
    )
    _say("2/4  training", shlex.join(train))
    _fairchem(train[1:], out / "training.log")

    from est_ocp.cli.evaluate import evaluate
    from est_ocp.cli.report import make_report

    evaluation = f"est-ocp evaluate --checkpoint {run_dir} {shlex.join(ONE_PROCESS)}"
    _say("3/4  evaluation", evaluation)
    evaluate(run_dir, overrides=ONE_PROCESS)
    _say("4/4  report", f"est-ocp report {run_dir} --out {out / 'report'}")
    again = out / "runs" / "repeat"
    commands = [
        f"# this run had job.timestamp_id={run_id}, with which fairchem would continue it",
        f"est-ocp data demo --out {out / 'data'}",
        shlex.join(train_again),
        f"est-ocp evaluate --checkpoint {again} {shlex.join(ONE_PROCESS)}",
        f"est-ocp report {again} --out {out / 'report-repeat'}",
    ]
    page = make_report(run_dir, out / "report", commands=commands, note=NOTE)
    print(f"\nreport: {page}  ({time.perf_counter() - started:.0f} s in all)")
    return 0


def write_entry(out: Path) -> Path:
    """Write a config as a user's own would be: fairchem alone, without est-ocp, has to read it.

    The search path makes Hydra import ``est_ocp.configs``, which registers what its files need.
    """
    entry = out / "s2ef.yml"
    entry.write_text(ENTRY)
    return entry


def _say(what: str, command: str) -> None:
    print(f"\n== {what}\n$ {command}", flush=True)


def _fairchem(arguments: list[str], log: Path) -> None:
    """Run fairchem with its own log in a file, and the progress lines on the screen too."""
    log.parent.mkdir(parents=True, exist_ok=True)
    program = Path(sys.executable).with_name("fairchem")
    process = subprocess.Popen(
        [str(program), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with log.open("w") as file, process:
        for line in process.stdout:
            file.write(line)
            file.flush()
            if PROGRESS in line:
                print(line.partition(PROGRESS)[2].strip(), flush=True)
    if process.returncode:
        raise ESTError(f"training ended with code {process.returncode}; its log is {log}")
