"""Measure rows of this project's models, as JSON lines; a process a precision of ``run.py``.

    python benchmarks/own_rows.py ROWS SETTINGS

Both arguments are JSON: a list of :class:`measuring.plan.Row`, and :class:`measuring.own.Settings`.
"""

from __future__ import annotations

import json
import sys

from measuring.own import Settings, measured
from measuring.plan import Row


def main() -> None:
    """Print one JSON line for each row."""
    rows = [Row(**row) for row in json.loads(sys.argv[1])]
    given = json.loads(sys.argv[2])
    tuples = {name: tuple(given[name]) for name in ("est", "baseline")}
    for record in measured(rows, Settings(**(given | tuples))):
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
