"""Identifiers and numbers of atoms of a dataset, without decoding its structures."""

from __future__ import annotations

import numpy as np
import pytest

from est_ocp.data import OC20LmdbDataset, record_index, write_oc20_lmdb
from est_ocp.data.record_index import scan
from est_ocp.errors import DataError


def record(number, **changes):
    count = 3 + number % 4
    return {
        "pos": np.arange(3 * count).reshape(count, 3) * 1.5,
        "atomic_numbers": np.full(count, 29),
        "cell": np.eye(3) * 20,
        "fixed": np.arange(count) < number % 3,
        "sid": number,
        "fid": 2,
    } | changes


@pytest.fixture
def dataset(tmp_path):
    write_oc20_lmdb(tmp_path / "data", [record(i) for i in range(11)], shards=3)
    return OC20LmdbDataset({"src": str(tmp_path / "data")})


def test_it_agrees_with_the_structures(dataset, monkeypatch):
    monkeypatch.setattr(record_index, "_CHUNK", 2)
    for workers in (1, 2, None):
        index = scan(dataset.shards, "s2ef", workers)
        samples = [dataset[i] for i in range(len(dataset))]
        assert index.ids.tolist() == [
            s.sid[0] if isinstance(s.sid, list) else s.sid for s in samples
        ]
        assert index.natoms.tolist() == [int(s.natoms) for s in samples]
        assert index.nfree.tolist() == [int((s.fixed == 0).sum()) for s in samples]
        assert index.duplicate() is None
    assert scan(dataset.shards, "is2re").ids.tolist() == [str(i) for i in range(11)]


def test_it_is_read_once(dataset, monkeypatch, tmp_path):
    monkeypatch.setenv("EST_OCP_CACHE", str(tmp_path / "cache"))
    first = record_index.record_index(dataset.shards, "s2ef")
    monkeypatch.setattr(record_index, "scan", None)
    again = record_index.record_index(dataset.shards, "s2ef")
    np.testing.assert_array_equal(first.ids, again.ids)
    with pytest.raises(TypeError):
        record_index.record_index(dataset.shards, "is2re")


def test_duplicates_and_damaged_records(tmp_path):
    folder = tmp_path / "twice"
    write_oc20_lmdb(folder, [record(0), record(1), record(0, fid=3), record(1)])
    shards = OC20LmdbDataset({"src": str(folder)}).shards
    assert scan(shards, "s2ef").duplicate() == (1, 3)
    write_oc20_lmdb(tmp_path / "odd", [record(0), record(1, fixed=np.zeros(2))])
    shards = OC20LmdbDataset({"src": str(tmp_path / "odd")}).shards
    with pytest.raises(DataError, match=r"record 1 of .* has 2 'fixed' for 4 positions"):
        scan(shards, "s2ef")
