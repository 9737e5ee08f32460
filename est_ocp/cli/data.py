"""``est-ocp data``: write the demonstration data, S2EF and IS2RE."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("what", choices=["demo"], help="which data")
    parser.add_argument("--out", default="data/demo", help="folder to write into (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Write the data."""
    from est_ocp.data import write_demo_set

    for split, folder in write_demo_set(arguments.out).items():
        print(f"{split:<20}{folder}")
    return 0
