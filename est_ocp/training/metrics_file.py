"""A run's ``metrics.jsonl``: one JSON object a line, in the order of the steps."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

FILE_NAME = "metrics.jsonl"


def metrics_path(job_config: Any) -> Path:
    """Return the file of a run, beside its ``logs`` folder."""
    return Path(job_config.metadata.log_dir).parent / FILE_NAME


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row. Numbers that are not finite become null, as JSON knows none.

    A row that cannot be written (a full disk) is left out with a warning.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    end = path.stat().st_size if path.is_file() else 0
    try:
        with path.open("a") as file:
            file.write(json.dumps(_finite(row)) + "\n")
    except OSError as error:
        logging.warning(f"a row of {path} could not be written ({error.strerror or error})")
        with contextlib.suppress(OSError):
            os.truncate(path, end)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows, without a last line that a kill cut short."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def drop_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the rows of steps after ``step``, which a resumed run goes through again."""
    rows = [row for row in read(path) if row["step"] <= step]
    if path.is_file():
        new = path.with_suffix(".new")
        new.write_text("".join(json.dumps(row) + "\n" for row in rows))
        new.replace(path)
    return rows


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
