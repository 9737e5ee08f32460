"""Helpers for commands with a checkpoint and data."""

from __future__ import annotations

import sys
from pathlib import Path

from est_ocp.cli.main import main

PROGRAM = str(Path(sys.executable).with_name("est-ocp"))
SPLITS = ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both")


def data_of(arguments: list[str]) -> Path:
    return Path(arguments[-1].removeprefix("data.root="))


def error_of(arguments, capsys) -> str:
    """Run a command that must fail and return its one line."""
    capsys.readouterr()
    assert main(arguments) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("est-ocp: error:")]
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]
