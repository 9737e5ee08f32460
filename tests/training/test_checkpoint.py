"""Checkpoints that are damaged, interrupted, or cannot be saved."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from est_ocp.errors import CheckpointError
from est_ocp.evaluation import find_inference_checkpoint, load_unit
from est_ocp.training import TrainRunner, latest_checkpoint, metrics_file
from est_ocp.training.checkpoint import finish_interrupted, problem_of
from est_ocp.training.manifest import MANIFEST
from tests.training.launch import DEBUG, train
from tests.training.small_checkpoints import SmallRun


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def runner_of(run: SmallRun) -> tuple[TrainRunner, list[str]]:
    """Return a runner without a model, and the list of what it loads."""
    runner = object.__new__(TrainRunner)
    runner.job_config = OmegaConf.create({"metadata": {"checkpoint_dir": str(run.checkpoints)}})
    loaded: list[str] = []
    runner.train_eval_unit = SimpleNamespace(load_state=loaded.append)
    return runner, loaded


@pytest.fixture
def run(tmp_path):
    """A run with the checkpoints step_1 and step_2."""
    made = SmallRun(tmp_path / "run")
    made.save(1)
    made.save(2)
    return made


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(cut_short, "bytes instead of"), (flip_a_bit, "have changed"), (Path.unlink, "is missing")],
)
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "random_state_rank0.pt"])
def test_a_damaged_newest_checkpoint_is_skipped_in_one_line(name, damage, reason, run, caplog):
    damage(run.checkpoints / "step_2" / name)
    assert latest_checkpoint(run.folder).name == "step_1"
    (record,) = caplog.records
    assert f"skipped the checkpoint {run.checkpoints / 'step_2'}: " in record.message
    assert reason in record.message
    assert "\n" not in record.message


def test_a_flipped_bit_in_any_file_is_noticed(run):
    checkpoint = run.checkpoints / "step_2"
    files = [file for file in checkpoint.iterdir() if file.name != MANIFEST]
    assert len(files) == 5
    for file in files:
        before = file.read_bytes()
        flip_a_bit(file)
        assert file.name in problem_of(checkpoint)
        file.write_bytes(before)
        assert problem_of(checkpoint) is None


@pytest.mark.parametrize("content", [b"", b"[]", b'{"time_ns": 1, "files": {"a": 3}}', b"\xff"])
def test_a_damaged_list_of_files_makes_the_checkpoint_invalid(content, run, caplog):
    (run.checkpoints / "step_2" / MANIFEST).write_bytes(content)
    # the time of saving is lost too: the folder's own dates tell which is newer
    assert latest_checkpoint(run.folder).name == "step_1"
    assert f"{MANIFEST} is damaged" in caplog.text


def test_a_checkpoint_without_a_list_is_checked_by_sizes(run):
    checkpoint = run.checkpoints / "step_2"
    content = json.loads((checkpoint / MANIFEST).read_text())
    for old in ({"time_ns": content["time_ns"]}, None):
        if old is None:
            (checkpoint / MANIFEST).unlink()
        else:
            (checkpoint / MANIFEST).write_text(json.dumps(old))
        assert latest_checkpoint(run.folder) == checkpoint
    cut_short(checkpoint / "__0_0.distcp")
    assert "bytes instead of" in problem_of(checkpoint)


def test_no_valid_checkpoint_is_an_error(run):
    for step in (1, 2):
        flip_a_bit(run.checkpoints / f"step_{step}" / "__0_0.distcp")
    with pytest.raises(CheckpointError, match=r"no complete checkpoint .*have changed.*copy"):
        latest_checkpoint(run.folder)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(run):
    runner, loaded = runner_of(run)
    for step in (1, 2):
        (run.checkpoints / f"step_{step}" / MANIFEST).unlink()
        (run.checkpoints / f"step_{step}" / "resume.yaml").unlink()
    before = sorted(run.checkpoints.rglob("*"))
    with pytest.raises(CheckpointError, match=rf"{run.checkpoints} holds no complete"):
        runner.load_state(None)
    assert not runner.save_state(str(run.checkpoints / "preemption_state"), is_preemption=True)
    assert sorted(run.checkpoints.rglob("*")) == before
    assert not loaded


def test_a_run_without_a_checkpoint_begins(tmp_path):
    run = SmallRun(tmp_path / "run")
    runner, loaded = runner_of(run)
    runner.load_state(None)
    # a kill inside the first saving, and a signal before it
    (run.checkpoints / "step_0.partial").mkdir(parents=True)
    (run.checkpoints / "preemption_state").mkdir()
    runner.load_state(None)
    assert run.names() == ["preemption_state"]
    assert not loaded


def test_inference_takes_the_newest_whole_weights(run, caplog):
    assert find_inference_checkpoint(run.folder).parent.name == "step_2"
    damaged = run.checkpoints / "step_2" / "inference_ckpt.pt"
    flip_a_bit(damaged)
    assert find_inference_checkpoint(run.folder).parent.name == "step_1"
    assert "skipped the checkpoint" in caplog.text
    with pytest.raises(CheckpointError, match=r"is damaged .*have changed"):
        load_unit(damaged)


def test_the_oldest_go_when_a_newer_one_is_in_place(tmp_path, monkeypatch):
    run = SmallRun(tmp_path / "run", keep=2)
    whole_at_removal = []
    rmtree = shutil.rmtree

    def watched(path, *args, **kwargs):
        if Path(path).name.startswith("step_") and Path(path).suffix == "":
            others = [p for p in run.checkpoints.iterdir() if p != Path(path) and not problem_of(p)]
            whole_at_removal.append(sorted(p.name for p in others))
        rmtree(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", watched)
    for step in range(4):
        run.save(step)
    assert run.names() == ["step_2", "step_3"]
    assert whole_at_removal == [["step_1", "step_2"], ["step_2", "step_3"]]
    run.finish()
    run.save(4)
    assert run.names() == ["final", "step_3", "step_4"]


@pytest.mark.parametrize("calls", range(6))
def test_a_kill_at_any_change_of_names_leaves_the_run_usable(calls, run, monkeypatch):
    """Replacing a checkpoint of the same name, cut off before each rename and removal."""
    left = [calls]

    def limited(function):
        def call(*args, **kwargs):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return function(*args, **kwargs)

        return call

    cut_off = pytest.raises(KeyboardInterrupt) if calls < 5 else contextlib.nullcontext()
    with monkeypatch.context() as patched, cut_off:
        patched.setattr(Path, "rename", limited(Path.rename))
        patched.setattr(shutil, "rmtree", limited(shutil.rmtree))
        run.save(2)
    finish_interrupted(run.checkpoints)
    assert run.names() == ["step_1", "step_2"]
    assert latest_checkpoint(run.folder).name == "step_2"


def test_an_unfinished_checkpoint_is_removed_and_a_finished_one_named(run):
    (run.checkpoints / "step_2").rename(run.checkpoints / "step_3.partial")
    shutil.copytree(run.checkpoints / "step_1", run.checkpoints / "step_4.partial")
    (run.checkpoints / "step_4.partial" / MANIFEST).unlink()
    assert latest_checkpoint(run.folder).name == "step_1"
    finish_interrupted(run.checkpoints)
    assert run.names() == ["step_1", "step_3"]


def refuse(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["torch.save", "os.fsync", "pathlib.Path.mkdir"])
def test_a_full_disk_costs_one_checkpoint_and_not_the_run(function, run, monkeypatch, caplog):
    with monkeypatch.context() as patched:
        patched.setattr(function, refuse)
        run.save(3)
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert f"step_3 could not be saved in {run.checkpoints} (no space left" in record.message
    assert "free space there" in record.message
    assert run.names() == ["step_1", "step_2"]
    assert latest_checkpoint(run.folder).name == "step_2"
    run.save(4)
    assert latest_checkpoint(run.folder).name == "step_4"


def test_a_full_disk_at_the_end_is_an_error_that_names_folder_and_remedy(run, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", refuse)
        with pytest.raises(CheckpointError, match=f"final.*{run.checkpoints}.*free space.*again"):
            run.finish()
    assert latest_checkpoint(run.folder).name == "step_2"


def test_a_first_checkpoint_that_cannot_be_saved_ends_the_run_at_once(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file in the folder's place")
    with pytest.raises(CheckpointError, match=r"step_0 could not be saved.*writable"):
        SmallRun(tmp_path / "run").save(0)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own of half a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_really_full_keeps_the_earlier_checkpoints(small_disk, caplog):
    run = SmallRun(small_disk / "run")
    run.save(1)
    filler = small_disk / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}"], capture_output=True, check=False)
    run.save(2)
    assert f"step_2 could not be saved in {run.checkpoints}" in caplog.text
    assert run.names() == ["step_1"]
    with pytest.raises(CheckpointError, match="final could not be saved"):
        run.finish()
    filler.unlink()
    run.save(3)
    assert latest_checkpoint(run.folder).name == "step_3"


def test_a_folder_that_becomes_read_only_keeps_the_earlier_checkpoints(small_disk, caplog):
    run = SmallRun(small_disk / "run")
    run.save(3)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    run.save(4)
    assert "step_4 could not be saved" in caplog.text
    assert "read-only file system" in caplog.text
    assert run.names() == ["step_3"]
    assert latest_checkpoint(run.folder).name == "step_3"
    with pytest.raises(CheckpointError, match=r"final could not be saved.*writable"):
        run.finish()


def test_a_link_of_a_preempted_job_to_a_damaged_checkpoint_is_only_a_hint(run, caplog):
    runner, loaded = runner_of(run)
    link = run.checkpoints / "preemption_state"
    assert runner.save_state(str(link), is_preemption=True)
    flip_a_bit(run.checkpoints / "step_2" / "__0_0.distcp")
    runner.load_state(str(link))
    assert loaded == [str(run.checkpoints / "step_1")]
    assert "skipped the checkpoint" in caplog.text
    with pytest.raises(CheckpointError, match=r"no complete training checkpoint .*have changed"):
        runner.load_state(str(run.checkpoints / "step_2"))


def test_a_row_of_metrics_that_cannot_be_written_is_left_out(tmp_path, monkeypatch, caplog):
    path = tmp_path / "metrics.jsonl"
    metrics_file.append(path, {"kind": "train", "step": 1})
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        metrics_file.append(path, {"kind": "train", "step": 2})
    metrics_file.append(path, {"kind": "train", "step": 3})
    assert "could not be written (No space left" in caplog.text
    assert [row["step"] for row in metrics_file.read(path)] == [1, 3]


def test_training_goes_on_after_a_failed_save_and_again_after_a_failed_end(
    tiny_run, tiny_data, tmp_path, monkeypatch
):
    overrides = (
        f"data.root={tiny_data}", f"job.run_dir={tmp_path}", "job.timestamp_id=whole", "steps=6",
        "checkpoint_every=2", "max_eval_batches=null",
    )  # fmt: skip
    save = torch.save

    def full_for_some(content, file, *args, **kwargs):
        if any(name in str(file) for name in ("step_2.", "final.")):
            refuse()
        save(content, file, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_for_some)
        with pytest.raises(CheckpointError, match="final could not be saved"):
            train(DEBUG, *overrides)
    run = tmp_path / "whole"
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_0", "step_4"]
    train(DEBUG, *overrides)
    assert latest_checkpoint(run).name == "final"
    losses = [
        {row["step"]: row["loss"] for row in metrics_file.read(folder / "metrics.jsonl")
         if row["kind"] == "train"}
        for folder in (run, tiny_run)
    ]  # fmt: skip
    assert losses[0] == losses[1]
