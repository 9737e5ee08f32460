"""``est-ocp preflight``: what is wrong with a training config, before it costs GPU time."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("config", help="training config, e.g. configs/s2ef/est_8layer.yml")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. data.root=/oc20")
    parser.add_argument("--samples", type=int, default=256, help="structures read of each split")
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GIB",
        help="memory of the GPU to train on (default: of the one here, else 80)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")


def run(arguments: argparse.Namespace) -> int:
    """Print the table; 2 if a check failed."""
    from est_ocp.cli.config import resolve
    from est_ocp.evaluation.checkpoint import quiet
    from est_ocp.preflight import preflight

    config = resolve(arguments.config, arguments.overrides)
    with quiet():
        report = preflight(
            config, max(1, arguments.samples), arguments.gpu_memory,
            tell=lambda text: print(f"... {text}", file=sys.stderr, flush=True),
        )  # fmt: skip
    print(report.text())
    if arguments.json is not None:
        content = {"config": str(arguments.config), "overrides": list(arguments.overrides)}
        arguments.json.write_text(json.dumps(content | report.as_dict(), indent=2) + "\n")
    return report.exit_code
