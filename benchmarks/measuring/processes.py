"""Rows measured in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from measuring.plan import Row


def records(
    command: Sequence[str], rows: Sequence[Row], seconds: float
) -> Iterator[dict[str, Any]]:
    """Run a script of this folder and yield the JSON lines that it prints, as they come.

    Parameters
    ----------
    command : sequence of str
        Script and arguments, for this Python.
    rows : sequence of Row
        What it measures; those without a line when it ends get one with an error.
    seconds : float
        It is ended after that.
    """
    # A session of its own, to end what it starts (compilers) along with it.
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    timer = threading.Timer(max(seconds, 1.0), _end, [process])
    timer.start()
    seen = set()
    try:
        for line in process.stdout:
            if line.startswith("{"):
                record = json.loads(line)
                seen.add(record["name"])
                yield record
        code = process.wait()
    finally:
        timer.cancel()
        _end(process)
    for row in rows:
        if row.name not in seen:
            error = "no time left" if code == -9 else f"the process ended with code {code}"
            yield asdict(row) | {"name": row.name, "error": error}


def _end(process: subprocess.Popen) -> None:
    """Kill a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
