"""metadata.npz: found, made, kept elsewhere, checked."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time

import numpy as np
import pytest

from est_ocp.data import OC20LmdbDataset, metadata, write_oc20_lmdb
from est_ocp.data.metadata import count_all, main, metadata_path, natoms_of
from est_ocp.data.shards import LmdbShards, find_shards
from est_ocp.errors import DataError
from tests.data.conftest import make_record

NATOMS = [3, 4, 5, 6, 7, 3, 4]


@pytest.fixture
def folder(tmp_path):
    write_oc20_lmdb(tmp_path / "set", [make_record(i) for i in range(7)], shards=2, metadata=False)
    return tmp_path / "set"


def shards_of(path) -> LmdbShards:
    return LmdbShards(find_shards(path))


def test_made_once_and_read_after(folder, caplog):
    caplog.set_level(logging.WARNING)
    assert natoms_of(shards_of(folder)).tolist() == NATOMS
    assert "counting atoms" in caplog.text
    caplog.clear()
    assert OC20LmdbDataset({"src": str(folder)}).get_metadata("natoms", 4) == 7
    assert not caplog.text
    with np.load(folder / "metadata.npz") as stored:
        assert stored["natoms"].tolist() == NATOMS
        assert np.issubdtype(stored["natoms"].dtype, np.integer)


def test_read_only_folder_uses_the_cache(folder, monkeypatch, caplog):
    real = metadata.save_natoms

    def refuse(path, natoms):
        if path.parent == folder:
            raise PermissionError("read-only")
        real(path, natoms)

    monkeypatch.setattr(metadata, "save_natoms", refuse)
    assert natoms_of(shards_of(folder)).tolist() == NATOMS
    assert not (folder / "metadata.npz").exists()
    assert "metadata.npz' (read-only)" in caplog.text
    monkeypatch.setattr(metadata, "count_all", lambda shards: pytest.fail("counted again"))
    assert natoms_of(shards_of(folder)).tolist() == NATOMS


def test_cache_is_of_the_same_files(folder):
    before = metadata.cache_path(shards_of(folder))
    os.utime(folder / "data.0000.lmdb", (1, 1))
    assert metadata.cache_path(shards_of(folder)) != before


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"natoms": np.arange(1, 6)}, "5 samples but the shards hold 7.*delete"),
        ({"sizes": np.arange(7)}, "no readable 'natoms'"),
        ({"natoms": np.arange(7)}, "positive whole"),
        ({"natoms": np.arange(7) + 1.5}, "positive whole"),
    ],
)
def test_wrong_metadata(folder, arrays, message):
    np.savez(folder / "metadata.npz", **arrays)
    with pytest.raises(DataError, match=message):
        natoms_of(shards_of(folder))


@pytest.mark.parametrize("index", [0, 3, 6])
@pytest.mark.parametrize("cached", [False, True])
def test_metadata_of_other_structures(folder, index, cached):
    shards = shards_of(folder)
    path = metadata.cache_path(shards) if cached else metadata_path(shards)
    wrong = np.array(NATOMS)
    wrong[index] += 1
    metadata.save_natoms(path, wrong)
    with pytest.raises(DataError, match=rf"{path.name}.*\(sample {index}\).*delete it"):
        natoms_of(shards)


def test_damaged_and_absent_metadata(folder):
    natoms_of(shards_of(folder))
    os.truncate(folder / "metadata.npz", 100)
    with pytest.raises(DataError, match="delete it"):
        natoms_of(shards_of(folder))
    with pytest.raises(DataError, match="metadata_path"):
        natoms_of(shards_of(folder), folder / "absent.npz")


def test_given_metadata_wins(folder, tmp_path):
    np.savez(tmp_path / "own.npz", natoms=np.array(NATOMS) + 1)
    data = OC20LmdbDataset({"src": str(folder), "metadata_path": str(tmp_path / "own.npz")})
    assert data.get_metadata("natoms", 0) == 4


def test_one_file_of_several_has_its_own(folder):
    natoms_of(shards_of(folder))
    single = shards_of(folder / "data.0001.lmdb")
    assert metadata_path(single).name == "data.0001.metadata.npz"
    assert natoms_of(single).tolist() == NATOMS[4:]


def test_workers_and_command(folder, capsys):
    assert count_all(shards_of(folder), workers=2).tolist() == NATOMS
    main([str(folder)])
    assert "7 samples, 4.57 atoms" in capsys.readouterr().out


def _count(folder, log):
    def slow(shards, workers=1):
        log.put(os.getpid())
        time.sleep(0.5)
        return np.array(NATOMS)

    metadata.count_all = slow
    assert natoms_of(shards_of(folder)).tolist() == NATOMS


def test_of_several_processes_one_counts(folder):
    context = multiprocessing.get_context("fork")
    log = context.Queue()
    processes = [context.Process(target=_count, args=(folder, log)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    log.get(timeout=5)
    assert log.empty()
