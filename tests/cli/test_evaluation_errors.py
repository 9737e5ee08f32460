"""What cannot be evaluated is one clear error."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from est_ocp.data import load_demo_frames, write_oc20_lmdb
from tests.cli.words import PROGRAM, SPLITS, data_of, error_of


def not_a_number(records):
    records[3]["pos"] = records[3]["pos"] * np.nan


def broken(data: Path, folder: Path, change) -> Path:
    """Copy validation data with a change to val_ood_cat's records."""
    for split in SPLITS:
        shutil.copytree(data / split, folder / split)
    records = [dict(r) for r in load_demo_frames().of_split("val_ood_cat").records()][:5]
    change(records)
    write_oc20_lmdb(folder / "val_ood_cat", records, overwrite=True)
    return folder


def repeat_an_id(records):
    records[4]["sid"], records[4]["fid"] = records[1]["sid"], records[1]["fid"]


@pytest.mark.parametrize(
    ("change", "message"),
    [(not_a_number, "'pos' that are not finite"), (repeat_an_id, "occurs twice in the split")],
)
def test_bad_records_are_one_error_each(change, message, s2ef, tmp_path, capsys):
    data = broken(data_of(s2ef), tmp_path / "data", change)
    command = ["evaluate", *s2ef[:-1], f"data.root={data}", "--out", str(tmp_path / "out")]
    error = error_of([*command, "--splits", "val_ood_cat"], capsys)
    assert message in error
    assert "val_ood_cat" in error


def test_missing_and_truncated_splits_are_one_error_each(s2ef, tmp_path, capsys):
    data = broken(data_of(s2ef), tmp_path / "data", list)
    command = ["evaluate", *s2ef[:-1], f"data.root={data}", "--out", str(tmp_path / "out")]
    file = data / "val_ood_cat" / "data.0000.lmdb"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "is truncated" in error_of(command, capsys)
    shutil.rmtree(file.parent)
    assert "there is no folder or file" in error_of(command, capsys)
    assert "has no split 'val_odd'" in error_of([*command, "--splits", "val_odd"], capsys)


def test_a_split_without_labels_names_predict(s2ef, is2re, tmp_path, capsys):
    for arguments in (s2ef, is2re):
        command = ["evaluate", *arguments, "--splits", "test_id", "--out", str(tmp_path)]
        error = error_of(command, capsys)
        assert "'test_id' has no labels" in error
        assert "`est-ocp predict`" in error


def test_a_checkpoint_of_the_other_task_is_refused(s2ef, is2re, tmp_path, capsys):
    for a, b in ((s2ef, is2re), (is2re, s2ef)):
        error = error_of(["evaluate", *a[:2], *b[2:], "--out", str(tmp_path)], capsys)
        assert "predicts S2EF" in error or "predicts IS2RE" in error
        assert "name a config of the checkpoint's task" in error


def test_wrong_arguments_are_one_line(capsys, monkeypatch):
    assert "name one of" in error_of(["evaluate"], capsys)
    assert "name --predictions" in error_of(["submission", "make", "--out", "a.npz"], capsys)
    assert "not a readable npz" in error_of(["submission", "check", "nothing.npz"], capsys)
    assert "no predictions" in error_of(["evaluate", "--predictions", "nowhere"], capsys)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    error = error_of(["evaluate", "--predictions", "nowhere", "--plots"], capsys)
    assert "pip install 'est-ocp[report]'" in error


@pytest.mark.slow
def test_an_error_on_one_of_two_ranks_is_one_line(s2ef, tmp_path):
    data = broken(data_of(s2ef), tmp_path / "data", not_a_number)
    done = subprocess.run(
        [
            PROGRAM, "evaluate", *s2ef[:-1], f"data.root={data}", "--out", str(tmp_path / "out"),
            "job.scheduler.ranks_per_node=2", "eval_batch_size=2",
        ],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("est-ocp: error:") == 1
    assert "record 3 of" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "val_id.npz").is_file()
