"""Damage to files, for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np


def damaged_copies(file: Path, copy: Path, count: int = 200, seed: int = 0) -> Iterator[Path]:
    """Yield ``copy`` again and again, each time with a few other bytes of ``file`` changed."""
    rng = np.random.default_rng(seed)
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    for _ in range(count):
        content = whole.copy()
        places = rng.integers(len(content), size=rng.choice([1, 3, 20]))
        content[places] = rng.integers(256, size=len(places))
        copy.write_bytes(content.tobytes())
        yield copy
