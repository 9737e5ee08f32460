"""Half-copied folders, flipped bits, full disks, elements that a model does not know."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from fairchem.core.datasets.atomic_data import AtomicData

from est_ocp.cli.config import instantiate, resolve
from est_ocp.cli.main import main
from est_ocp.data import OC20LmdbDataset, metadata, write_lmdb, write_oc20_lmdb
from est_ocp.data.shards import LmdbShards, find_shards
from est_ocp.data.write_lmdb import to_pyg
from est_ocp.errors import DataError
from tests.data.conftest import make_record
from tests.data.test_shards import edit
from tests.reliability.spoilt import with_bad_record
from tests.training.launch import DEBUG, train


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Seven records in three shards with their metadata.npz."""
    monkeypatch.setenv("EST_OCP_CACHE", str(tmp_path / "cache"))
    write_oc20_lmdb(tmp_path / "set", [make_record(i) for i in range(7)], shards=3)
    return tmp_path / "set"


def problems(path: Path) -> list[str | None]:
    """Read all of a file; what is said of each record, None for a structure."""
    found: list[str | None] = []
    try:
        data = OC20LmdbDataset({"src": str(path)})
    except DataError as error:
        return [str(error)]
    for index in range(len(data)):
        try:
            sample = data[index]
        except DataError as error:
            found.append(str(error))
        else:
            assert isinstance(sample, AtomicData)
            assert np.isfinite(sample.pos.numpy()).all()
            found.append(None)
    return found


def test_flipped_bits_are_an_error_or_a_structure(folder):
    """LMDB has no checksums: a bit in a label cannot be seen, but nothing worse may happen."""
    path = folder / "data.0000.lmdb"
    payload = pickle.dumps(to_pyg(make_record(0)), protocol=-1)
    said = []
    for seed in range(200):
        draw = random.Random(seed)
        damaged = bytearray(payload)
        damaged[draw.randrange(len(payload))] ^= 1 << draw.randrange(8)
        edit(path, {"0": bytes(damaged)})
        said.append(problems(path)[0])
    errors = [text for text in said if text is not None]
    assert 40 < len(errors) < 160
    assert all("record 0 of" in text and "\n" not in text for text in errors)


def test_flipped_bits_anywhere_in_a_file(folder):
    path = folder / "data.0000.lmdb"
    whole = path.read_bytes()
    said = []
    for seed in range(20):
        draw = random.Random(seed)
        damaged = bytearray(whole)
        for _ in range(30):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        said += problems(path)
    errors = [text for text in said if text is not None]
    assert errors
    assert all(str(path) in text for text in errors)


@pytest.mark.parametrize(
    "left",
    [
        "data.0003.lmdb.part",
        "data.0003.lmdb.aria2",
        "data.0003.lmdb.tmp",
        ".data.0003.lmdb.Xq2bTz",
    ],
)
def test_what_an_interrupted_download_leaves_is_named(folder, left):
    (folder / left).write_bytes(b"half")
    with pytest.raises(DataError, match=rf"'{left}', which an interrupted download left"):
        find_shards(folder)


def test_lock_files_of_lmdb_do_not_matter(folder):
    (folder / "data.0000.lmdb-lock").write_bytes(b"")
    assert len(OC20LmdbDataset({"src": str(folder)})) == 7


def test_missing_last_shards_are_found_by_the_metadata_beside_them(folder):
    """Names without a gap do not tell that some are missing at the end."""
    (folder / "data.0002.lmdb").unlink()
    with pytest.raises(DataError, match="7 samples but the shards hold 5; fetch the shards"):
        OC20LmdbDataset({"src": str(folder)})
    (folder / "metadata.npz").unlink()
    assert len(OC20LmdbDataset({"src": str(folder)})) == 5


def test_a_training_on_a_half_copied_folder_does_not_begin(tiny_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    path = data / "val_ood_cat" / "data.0000.lmdb"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(Exception, match=r"val_ood_cat/data\.0000\.lmdb' is truncated: .* again"):
        train(DEBUG, f"data.root={data}", f"job.run_dir={tmp_path / 'runs'}", "steps=1")
    assert not list((tmp_path / "runs").rglob("step_*"))


def test_a_structure_file_given_as_data_is_no_lmdb(tmp_path):
    (tmp_path / "train.extxyz").write_text("1\n\nH 0 0 0\n")
    cfg = resolve(DEBUG, [f"data.train.splits.train.src={tmp_path / 'train.extxyz'}"])
    with pytest.raises(DataError, match=r"train\.extxyz' cannot be opened as LMDB"):
        instantiate(cfg.runner.train_dataloader.dataset, "the data")


def no_space(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_counting_atoms_on_a_full_disk_goes_on(folder, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    (folder / "metadata.npz").unlink()
    monkeypatch.setattr(metadata.np, "savez", no_space)
    natoms = metadata.natoms_of(LmdbShards(find_shards(folder)))
    assert natoms.tolist() == [3, 4, 5, 6, 7, 3, 4]
    assert caplog.text.count("No space left on device") == 2
    assert sorted(path.name for path in folder.iterdir()) == [
        "data.0000.lmdb", "data.0001.lmdb", "data.0002.lmdb"
    ]  # fmt: skip


def test_writing_data_on_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    def full(env, items):
        raise write_lmdb.lmdb.Error("mdb_txn_commit: No space left on device")

    monkeypatch.setattr(write_lmdb, "_put", full)
    assert main(["data", "demo", "--out", str(tmp_path / "demo")]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("est-ocp: error")]
    assert "data.0000.lmdb' cannot be written (mdb_txn_commit: No space left" in line
    assert "MiB are free there); free some space" in line
    assert not [path for path in (tmp_path / "demo").rglob("*") if path.is_file()]


def test_an_element_that_the_model_has_no_embedding_of_names_its_record(tiny_data, tmp_path):
    def heavy(record):
        record["atomic_numbers"] = np.full(len(record["pos"]), 95)

    with_bad_record(tiny_data, tmp_path / "data", heavy)
    with pytest.raises(DataError, match=r"^record 7 of .* has atomic number 95; elements 1 to 89"):
        train(DEBUG, f"data.root={tmp_path / 'data'}", f"job.run_dir={tmp_path}", "steps=6")
