"""The batches of a run as plain tensors in a file, for a process without this project."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

FIELDS = ("pos", "cell", "atomic_numbers", "natoms", "tags", "fixed", "batch", "energy", "forces")


def write(path: Path, by_size: Iterable[tuple[int, list[Any]]]) -> None:
    """Write batches by their number of structures."""
    torch.save(
        {size: [{name: b[name] for name in FIELDS} for b in data] for size, data in by_size}, path
    )


def read(path: Path) -> dict[int, list[dict[str, torch.Tensor]]]:
    """Read what :func:`write` wrote."""
    return torch.load(path, weights_only=True)


def on_device(batch: dict[str, torch.Tensor], device: str) -> SimpleNamespace:
    """A batch with tensors as attributes."""
    return SimpleNamespace(**{name: value.to(device) for name, value in batch.items()})
