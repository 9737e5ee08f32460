"""Trainings in processes of their own: two ranks, kills, signals, wandb."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from est_ocp.training import metrics_file
from tests.training.launch import DEBUG, fairchem_command, run_command

pytestmark = pytest.mark.slow


def losses(run):
    rows = metrics_file.read(run / "metrics.jsonl")
    return {r["step"]: r["loss"] for r in rows if r["kind"] == "train"}


def start(command):
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "the training ended too early"
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def test_two_ranks_give_the_losses_of_one(tiny_data, tmp_path):
    common = (
        f"data.root={tiny_data}", f"job.run_dir={tmp_path}", "steps=4", "max_eval_batches=null",
        "model.backbone.alpha_drop=0", "model.backbone.drop_path=0", "logger=wandb",
    )  # fmt: skip
    one = fairchem_command(DEBUG, *common, "batch_size=4", "job.timestamp_id=one")
    run_command(one, WANDB_MODE="offline")
    two = fairchem_command(
        DEBUG, *common, "batch_size=2", "job.timestamp_id=two", "job.scheduler.ranks_per_node=2"
    )
    run_command(two, WANDB_MODE="offline")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    assert list((tmp_path / "two" / "logs" / "wandb").glob("offline-run-*"))
    evaluations = [
        next(r for r in metrics_file.read(tmp_path / name / "metrics.jsonl") if r["kind"] == "eval")
        for name in ("one", "two")
    ]
    single, double = (e["splits"]["mean"]["forces_mae"] for e in evaluations)
    assert double == pytest.approx(single, rel=2e-2)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(how, tiny_data, tmp_path):
    steps = 120

    def command(name):
        return fairchem_command(
            DEBUG, f"data.root={tiny_data}", f"job.run_dir={tmp_path}", f"steps={steps}",
            "checkpoint_every=10", "max_eval_batches=1", f"job.timestamp_id={name}",
        )  # fmt: skip

    process = start(command("cut"))
    wait_for(tmp_path / "cut" / "checkpoints" / "step_20", process)
    process.send_signal(how)
    process.wait(60)
    done = max(losses(tmp_path / "cut"))
    assert 20 <= done < steps
    run_command(command("cut"))
    run_command(command("whole"))
    cut, whole = losses(tmp_path / "cut"), losses(tmp_path / "whole")
    assert sorted(cut) == list(range(1, steps + 1))
    assert cut == whole
