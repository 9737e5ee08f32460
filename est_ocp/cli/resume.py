"""``est-ocp resume``: continue a training."""

from __future__ import annotations

import argparse
import shlex
import subprocess


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("run_dir", help="the run, e.g. runs/20260101-120000")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. runner.max_steps=9000")
    parser.add_argument(
        "--print", dest="only_print", action="store_true", help="print the command, do not run it"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the fairchem command and run it."""
    from est_ocp.training.checkpoint import resume_command

    command = resume_command(arguments.run_dir, arguments.overrides)
    print("$ " + shlex.join(command), flush=True)
    if arguments.only_print:
        return 0
    return subprocess.call(command)
