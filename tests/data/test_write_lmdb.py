"""The writer leaves OC20's exact format, and no half files."""

from __future__ import annotations

import pickle

import lmdb
import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from est_ocp.data import write_lmdb, write_oc20_lmdb
from est_ocp.errors import ConfigError, DataError
from tests.data.conftest import make_record


def raw(path) -> dict[str, object]:
    """Read a file as OC20's own tools do."""
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False) as env,
        env.begin() as transaction,
    ):
        return {key.decode("ascii"): pickle.loads(value) for key, value in transaction.cursor()}


def test_exact_format(tmp_path):
    records = [make_record(i) for i in range(5)]
    files = write_oc20_lmdb(tmp_path, records, shards=2)
    assert [path.name for path in files] == ["data.0000.lmdb", "data.0001.lmdb"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*(p.name for p in files), "metadata.npz"]
    content = raw(files[1])
    assert set(content) == {"0", "1", "length"}
    assert content["length"] == 2
    data = content["1"]
    assert type(data) is Data
    assert set(data.keys()) == {
        "pos", "cell", "atomic_numbers", "natoms", "tags", "fixed", "sid", "fid", "y", "force",
    }  # fmt: skip
    assert data.cell.shape == (1, 3, 3)
    assert data.atomic_numbers.dtype == torch.float32
    assert (data.natoms, data.sid, data.fid, data.y) == (7, 1004, 4, 3.5)
    assert torch.equal(data.force, torch.tensor(records[4]["forces"]))
    with np.load(tmp_path / "metadata.npz") as stored:
        assert stored["natoms"].tolist() == [3, 4, 5, 6, 7]


def test_new_names_and_one_file(tmp_path):
    (path,) = write_oc20_lmdb(tmp_path / "a.lmdb", [make_record(0)], old_names=False)
    assert {"energy", "forces"} <= set(raw(path)["0"].keys())


def test_map_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(write_lmdb, "_FIRST_MAP_SIZE", 1 << 15)
    (path,) = write_oc20_lmdb(tmp_path, [make_record(i) for i in range(40)])
    assert raw(path)["length"] == 40


def test_failure_leaves_nothing(tmp_path):
    records = [make_record(0), {"pos": np.zeros((2, 3))}]
    with pytest.raises(KeyError):
        write_oc20_lmdb(tmp_path, records)
    assert list(tmp_path.iterdir()) == []


def test_overwrite(tmp_path):
    write_oc20_lmdb(tmp_path, [make_record(i) for i in range(6)], shards=3)
    with pytest.raises(DataError, match="already there"):
        write_oc20_lmdb(tmp_path, [make_record(0)])
    write_oc20_lmdb(tmp_path, [make_record(0)], overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.0000.lmdb", "metadata.npz"]


def test_refusals(tmp_path):
    with pytest.raises(DataError, match="no records"):
        write_oc20_lmdb(tmp_path, [])
    with pytest.raises(ConfigError, match="cannot fill 2 shards"):
        write_oc20_lmdb(tmp_path, [make_record(0)], shards=2)
    with pytest.raises(ConfigError, match="one file"):
        write_oc20_lmdb(tmp_path / "a.lmdb", [make_record(0), make_record(1)], shards=2)
    with pytest.raises(ConfigError, match="s2ef"):
        write_oc20_lmdb(tmp_path, [make_record(0)], task="is2rs")
