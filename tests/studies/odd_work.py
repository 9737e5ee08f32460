"""Work for the worker processes of studies, importable without anything heavy."""

from __future__ import annotations

import os
import time


def square_of(item: int, device: str) -> int:
    """Square of most numbers: 2 raises, 3 takes a minute, 4 ends the process."""
    if item == 2:
        raise ValueError("two is not squared")
    if item == 3:
        time.sleep(60)
    if item == 4:
        os._exit(7)
    return item**2
