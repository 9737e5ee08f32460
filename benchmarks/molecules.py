"""QM9's molecules for the benchmarks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from est_ocp.data import collate_molecules, create_qm9_dataset

#: One number a molecule, as far as batches are concerned.
TASK = SimpleNamespace(
    name="target", level="system", property="target", datasets=["qm9"], inference_only=False,
    out_spec=SimpleNamespace(dim=[1], dtype="float32"),
    train_on_free_atoms=True, eval_on_free_atoms=True,
)  # fmt: skip


def data_config(folder: str) -> dict[str, Any]:
    """Config of the training set that `est-ocp data qm9` wrote into a folder."""
    entry = {"format": "qm9_lmdb", "target": "U0", "cutoff": 5.0}
    return {"qm9": {**entry, "splits": {"train": {"src": f"{folder}/train"}}}}


def batches(folder: str, size: int, count: int) -> list[Any]:
    """Return ``count`` batches of ``size`` molecules, from the first one on, with their edges."""
    dataset, collate = create_qm9_dataset(data_config(folder)), collate_molecules([TASK])
    rows = [range(i * size, (i + 1) * size) for i in range(count)]
    return [collate(dataset.__getitems__(list(row))) for row in rows]
