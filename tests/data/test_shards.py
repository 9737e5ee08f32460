"""Folders and files that cannot be read give one clear error."""

from __future__ import annotations

import os
import pickle

import lmdb
import pytest

from est_ocp.data.shards import LmdbShards, expand_path, find_shards
from est_ocp.data.write_lmdb import write_oc20_lmdb
from est_ocp.errors import DataError
from tests.data.conftest import make_record


def edit(path, changes: dict[str, bytes | None]) -> None:
    """Put or delete raw entries of an LMDB file."""
    env = lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 24)
    with env.begin(write=True) as transaction:
        for key, value in changes.items():
            if value is None:
                transaction.delete(key.encode())
            else:
                transaction.put(key.encode(), value)
    env.close()


@pytest.fixture
def folder(tmp_path):
    write_oc20_lmdb(tmp_path / "set", [make_record(i) for i in range(7)], shards=3)
    return tmp_path / "set"


def test_unequal_shards_are_one_sequence(folder):
    shards = LmdbShards(find_shards(folder))
    assert shards.lengths == [3, 2, 2]
    assert [shards.locate(i)[1] for i in range(7)] == [0, 1, 2, 0, 1, 0, 1]
    assert [shards.locate(i)[0].name[5:9] for i in (2, 3, 5)] == ["0000", "0001", "0002"]
    for index in (-1, 7):
        with pytest.raises(IndexError):
            shards.read(index)


def test_order_is_by_number_not_by_name(tmp_path):
    for number in (9999, 10000):
        write_oc20_lmdb(tmp_path / f"data.{number}.lmdb", [make_record(number)], metadata=False)
    names = [path.name for path in find_shards(tmp_path, allow_missing=True)]
    assert names == ["data.9999.lmdb", "data.10000.lmdb"]


def test_paths_are_expanded(folder, monkeypatch):
    monkeypatch.setenv("SOME_ROOT", str(folder.parent))
    assert len(find_shards("$SOME_ROOT/set")) == 3
    monkeypatch.delenv("SOME_ROOT")
    with pytest.raises(DataError, match="SOME_ROOT"):
        expand_path("${SOME_ROOT}/set")


def test_nothing_there(tmp_path, folder):
    with pytest.raises(DataError, match="no folder or file"):
        find_shards(tmp_path / "absent")
    with pytest.raises(DataError, match="subfolder 'set'"):
        find_shards(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \*.lmdb"):
        find_shards(tmp_path / "empty")


def test_gap_in_the_numbering(folder):
    (folder / "data.0001.lmdb").unlink()
    with pytest.raises(DataError, match=r"lacks data\.0001\.lmdb.*allow_missing_shards"):
        find_shards(folder)
    assert len(find_shards(folder, allow_missing=True)) == 2


def test_odd_file_names(folder):
    (folder / "data.0001.lmdb").rename(folder / "other.lmdb")
    with pytest.raises(DataError, match=r"other\.lmdb"):
        find_shards(folder)


@pytest.mark.parametrize("keep", [0, 1000, 5000, 12000])
def test_truncated_file(folder, keep):
    path = folder / "data.0001.lmdb"
    os.truncate(path, keep)
    with pytest.raises(DataError, match=r"data\.0001\.lmdb.*fetch"):
        LmdbShards(find_shards(folder))


def test_not_an_lmdb_file(folder):
    (folder / "data.0001.lmdb").write_bytes(b"<html>not found</html>" * 1000)
    with pytest.raises(DataError, match=r"data\.0001\.lmdb.*LMDB"):
        LmdbShards(find_shards(folder))


@pytest.mark.parametrize("length", [pickle.dumps(4), pickle.dumps(2), pickle.dumps(-1), b"junk"])
def test_length_against_entries(folder, length):
    edit(folder / "data.0000.lmdb", {"length": length})
    with pytest.raises(DataError, match=r"length.*data\.0000\.lmdb|data\.0000\.lmdb.*length"):
        LmdbShards(find_shards(folder))


def test_length_may_be_absent(folder):
    edit(folder / "data.0000.lmdb", {"length": None})
    assert LmdbShards(find_shards(folder)).lengths == [3, 2, 2]


def test_empty_shard_and_missing_record(folder):
    edit(folder / "data.0002.lmdb", {"0": None, "extra": b"x"})
    with pytest.raises(DataError, match=r"sample 5.*missing"):
        LmdbShards(find_shards(folder)).read(5)
    edit(
        folder / "data.0002.lmdb",
        {"1": None, "extra": None, "length": pickle.dumps(0)},
    )
    with pytest.raises(DataError, match=r"data\.0002\.lmdb.*no records"):
        LmdbShards(find_shards(folder))


def test_pages_that_never_arrived(folder):
    """A download that was given its full size first leaves zeros where data is missing."""
    path = folder / "data.0000.lmdb"
    content = path.read_bytes()
    path.write_bytes(content[: 2 * 4096] + bytes(len(content) - 2 * 4096))
    with pytest.raises(DataError, match=r"data\.0000\.lmdb"):
        LmdbShards(find_shards(folder)).read(0)


def test_nothing_is_open_after_construction_or_in_pickles(folder):
    shards = LmdbShards(find_shards(folder))
    assert shards._handles == {}
    shards.read(0)
    assert len(shards._handles) == 1
    copy = pickle.loads(pickle.dumps(shards))
    assert copy._handles == {}
    assert copy.read(6) == shards.read(6)
    shards.close()
    assert shards.read(0)
