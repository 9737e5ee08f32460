"""Small structures and OC20-format records made on the spot."""

from __future__ import annotations

import pickle
import sys
import types

import numpy as np
import pytest
import torch


def make_record(number: int, count: int | None = None, labelled: bool = True) -> dict:
    """Return an S2EF record whose values can be told from its number."""
    rng = np.random.default_rng(number)
    count = count if count is not None else 3 + number % 5
    record = {
        "pos": rng.uniform(-1, 11, (count, 3)).astype(np.float32),
        "atomic_numbers": rng.integers(1, 80, count),
        "cell": np.diag([10.0, 11.0, 12.0]).astype(np.float32),
        "tags": rng.integers(0, 3, count),
        "fixed": rng.integers(0, 2, count),
        "sid": 1000 + number,
        "fid": number % 7,
    }
    if labelled:
        record["energy"] = float(number) - 0.5
        record["forces"] = rng.normal(size=(count, 3)).astype(np.float32)
    return record


def old_pyg_pickle(monkeypatch: pytest.MonkeyPatch, **fields: object) -> bytes:
    """Pickle fields as PyG 1.x did: a Data object whose __dict__ holds them, unused ones None."""

    class Data:
        def __init__(self, **values: object) -> None:
            self.__dict__.update(dict.fromkeys(("x", "edge_index", "edge_attr", "face", "norm")))
            self.__dict__.update(values)

    Data.__module__, Data.__qualname__ = "torch_geometric.data.data", "Data"
    fake = types.ModuleType("torch_geometric.data.data")
    fake.Data = Data
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch_geometric.data.data", fake)
        return pickle.dumps(Data(**fields), protocol=pickle.HIGHEST_PROTOCOL)


def tensors(record: dict) -> dict:
    """Return a record with its arrays as tensors."""
    return {
        key: torch.as_tensor(value) if isinstance(value, np.ndarray) else value
        for key, value in record.items()
    }


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep the tests out of the user's cache."""
    monkeypatch.setenv("EST_OCP_CACHE", str(tmp_path_factory.mktemp("cache")))
