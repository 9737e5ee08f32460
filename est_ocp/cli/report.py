"""``est-ocp report``: the report of a run."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from est_ocp.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("run_dir", help="the run, e.g. runs/20260101-120000")
    parser.add_argument("--out", help="folder to write into (default: <run>/report)")
    parser.add_argument(
        "--structures",
        type=int,
        default=16,
        help="validation structures that are rotated for the equivariance figure; 0 leaves it "
        "out (%(default)s)",
    )
    parser.add_argument("--note", default="", help="a sentence under the table, e.g. label source")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate the run if that has not been done, and write its report."""
    page = make_report(arguments.run_dir, arguments.out, arguments.structures, note=arguments.note)
    print(f"report: {page}")
    return 0


def make_report(
    run_dir: str | Path,
    out: str | Path | None = None,
    structures: int = 16,
    commands: list[str] | None = None,
    note: str = "",
) -> Path:
    """Write a run's report and return its page.

    Parameters
    ----------
    run_dir : path
    out : path, optional
        Default: ``<run>/report``.
    structures : int
        Structures to rotate for the equivariance figure.
    commands : list of str, optional
        Command lines to show; default: those that repeat the run from its saved config.
    note : str
        A sentence under the table.
    """
    from est_ocp.cli.evaluate import evaluate, evaluated_splits
    from est_ocp.evaluation.checkpoint import find_inference_checkpoint
    from est_ocp.evaluation.figures import pyplot
    from est_ocp.evaluation.report import build_report

    run_dir = Path(run_dir)
    saved = run_dir / "canonical_config.yaml"
    if not saved.is_file():
        raise DataError(f"{run_dir} is not a run: it has no canonical_config.yaml")
    pyplot()
    predictions = run_dir / "results" / "predictions"
    checkpoint = find_inference_checkpoint(run_dir)
    splits = evaluated_splits(predictions, checkpoint)
    if splits is None:
        evaluate(checkpoint)
        splits = evaluated_splits(predictions, checkpoint)
    report = build_report(
        run_dir,
        predictions,
        checkpoint=checkpoint,
        batch=first_structures(saved, structures) if structures else None,
        commands=commands or repeat_commands(run_dir),
        note=note,
        split_names=splits,
    )
    print(report.results.text())
    return report.write(out or run_dir / "report")


def repeat_commands(run_dir: Path) -> list[str]:
    """Return the command lines that train, evaluate and report a run anew, under another id."""
    run_dir = run_dir if run_dir.name else run_dir.resolve()
    again = run_dir.with_name(repeat_id(run_dir.name))
    train = [
        "fairchem",
        "--config",
        str(run_dir / "canonical_config.yaml"),
        f"job.timestamp_id={again.name}",
        "job.runner_state_path=null",
    ]
    return [
        f"# this run had job.timestamp_id={run_dir.name}, with which fairchem would continue it",
        shlex.join(train),
        shlex.join(["est-ocp", "evaluate", "--checkpoint", str(again)]),
        shlex.join(["est-ocp", "report", str(again)]),
    ]


def repeat_id(run_id: str) -> str:
    """Return the id under which a run is repeated."""
    return "repeat" if run_id != "repeat" else "repeat-2"


def first_structures(config: str | Path, count: int) -> Any:
    """Return a batch of structures from the config's first validation split, evenly spaced."""
    import numpy as np

    from est_ocp.cli.config import instantiate, resolve

    loader = resolve(config).runner.eval_dataloader
    dataset = instantiate(loader.dataset, "the validation data")
    collate = instantiate(loader.collate_fn, "collate_fn")
    first = dataset.datasets[0]
    chosen = np.linspace(0, len(first) - 1, min(count, len(first))).round().astype(int)
    return collate([dataset[int(i)] for i in np.unique(chosen)])
