"""The command ``est-ocp``."""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import sys
from collections.abc import Sequence

from est_ocp import __version__
from est_ocp.errors import ESTError
from est_ocp.trust import trusting

#: Subcommand to its one-line help; each is a module of this package with ``add_arguments`` and
#: ``run``, imported only when it is called.
COMMANDS = {
    "demo": "write the demonstration data, train a small model, evaluate it, write a report",
    "data": "write the demonstration data as OC20 LMDB folders",
    "info": "resolve a training config and count its model's parameters, part by part",
    "preflight": "check a training config against its data before it costs GPU time",
    "evaluate": "predict the validation splits with a checkpoint and print OC20's metrics",
    "predict": "predict structures without labels, one npz a split",
    "submission": "make a leaderboard file of the test splits' predictions, or check one",
    "relax": "relax structures with a checkpoint, many at a time",
    "report": "write a run's report: table, figures, one HTML page",
    "resume": "continue a training from its newest complete checkpoint",
}
#: Subcommands that read checkpoints.
_READERS = ("evaluate", "predict", "submission", "relax", "report", "resume")
_EPILOG = (
    "Training itself is fairchem's command: fairchem --config configs/demo/s2ef.yml [overrides]"
)


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """Return the parser, with the arguments of the chosen subcommand filled in."""
    parser = argparse.ArgumentParser(
        prog="est-ocp",
        description="Equivariant Spherical Transformer models for fairchem.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"est-ocp {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        sub = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.add_argument("--debug", action="store_true", help="show tracebacks of errors")
        if name in _READERS:
            sub.add_argument(
                "--trust",
                action="store_true",
                help="run code that a checkpoint names; only for files from a source you trust",
            )
        if name == chosen:
            importlib.import_module(f"est_ocp.cli.{name}").add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        0 on success, 2 on an error that the user can put right, else a subprocess's own code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    arguments = _parse(argv, chosen)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        with trusting(getattr(arguments, "trust", False)):
            return importlib.import_module(f"est_ocp.cli.{arguments.command}").run(arguments) or 0
    except ESTError as error:
        if arguments.debug:
            raise
        print(f"est-ocp: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if arguments.debug:
            raise
        print(f"est-ocp: error: {_explain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("est-ocp: interrupted", file=sys.stderr)
        return 130


def _explain(error: OSError) -> str:
    """One line for a folder that cannot be written to, a full disk and the like."""
    reason = error.strerror.lower() if error.strerror else str(error) or type(error).__name__
    reason = " ".join(reason.split())
    if error.filename is not None:
        reason = f"'{error.filename}': {reason}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{reason}; free some space, then give the command again"
    # A write to an open file names none.
    return reason if error.filename is not None else f"{reason} (--debug shows where)"


def _parse(argv: list[str], chosen: str | None) -> argparse.Namespace:
    """Parse the words; Hydra overrides may also stand after an option."""
    parser = build_parser(chosen)
    arguments, left = parser.parse_known_args(argv)
    takes = hasattr(arguments, "overrides")
    wrong = [
        word
        for word in left
        if not takes or word.startswith("-") or not ("=" in word or word.startswith(("~", "+")))
    ]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if left:
        arguments.overrides = [*arguments.overrides, *left]
    return arguments


if __name__ == "__main__":
    sys.exit(main())
