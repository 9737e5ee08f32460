"""Jobs in a chain: one stops before its time limit, the next goes on, the last finds nothing."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest

from est_ocp.errors import ConfigError
from est_ocp.training import metrics_file, runner, stop_in_time
from est_ocp.training.stop_in_time import StopInTime
from tests.training.launch import DEBUG, train


def losses(run):
    rows = metrics_file.read(run / "metrics.jsonl")
    return {r["step"]: r["loss"] for r in rows if r["kind"] == "train"}


@pytest.fixture(scope="module")
def chain(tiny_data, tiny_run, tmp_path_factory):
    """Return the command of ``tiny_run`` in another folder, and the run that it has left."""
    folder = tmp_path_factory.mktemp("chain")

    def job(*overrides):
        train(
            DEBUG, f"data.root={tiny_data}", f"job.run_dir={folder}", "job.timestamp_id=whole",
            "steps=6", "checkpoint_every=3", "max_eval_batches=null", *overrides,
        )  # fmt: skip

    return job, folder / "whole"


def test_a_job_that_stops_before_its_time_limit_leaves_the_middle_of_an_epoch(
    chain, tiny_run, monkeypatch
):
    job, run = chain
    monkeypatch.setattr(runner, "StopInTime", partial(StopInTime, check_every=2))
    looks = iter([0.0, 60.0, 121.0])  # at the start of the job, of step 1 and of step 3
    clock = SimpleNamespace(monotonic=lambda: next(looks))
    monkeypatch.setattr(stop_in_time, "time", clock)
    job("+job.scheduler.slurm.timeout_hr=1", "runner.stop_before_timeout_min=58")
    monkeypatch.undo()
    assert sorted(losses(run)) == [1, 2]
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"step_0", "step_2"}
    job()
    assert losses(run) == losses(tiny_run)
    assert (run / "checkpoints" / "final" / "inference_ckpt.pt").is_file()


def test_no_time_at_all_is_one_clear_error():
    with pytest.raises(ConfigError, match="stop_before_timeout_min leaves no time"):
        StopInTime(0.0, None, "checkpoints")


def test_a_job_that_finds_the_training_finished_changes_nothing(tiny_data, tiny_run, chain):
    job, run = chain
    if not (run / "checkpoints" / "final").exists():
        job()
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (run / "checkpoints").rglob("*")}
    rows = (run / "metrics.jsonl").read_text()
    job()
    after = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (run / "checkpoints").rglob("*")}
    assert after == before
    assert (run / "metrics.jsonl").read_text() == rows
