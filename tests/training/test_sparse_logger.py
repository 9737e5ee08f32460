"""The experiment logger is seen at every so many steps only, by fairchem's own unit too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fairchem.core.common.logger import WandBSingletonLogger

from est_ocp.cli.config import resolve
from est_ocp.errors import ConfigError
from est_ocp.training import SparseLogger
from tests.training.launch import DEBUG, train

KEY = "runner.callbacks.sparse_logger.every"


def test_between_reports_a_step_has_no_logger():
    callback = SparseLogger(every=3)
    unit = SimpleNamespace(logger="wandb", train_progress=SimpleNamespace(num_steps_completed=0))
    callback.on_train_start(None, unit)
    seen = []
    for step in range(7):
        unit.train_progress.num_steps_completed = step
        callback.on_train_step_start(None, unit)
        seen.append(unit.logger is not None)
        callback.on_train_step_end(None, unit)
        # Evaluations come between steps.
        assert unit.logger == "wandb"
    assert seen == [True, False, False, True, False, False, True]


def test_after_an_error_the_logger_is_there_again():
    callback = SparseLogger(every=2)
    unit = SimpleNamespace(logger="wandb", train_progress=SimpleNamespace(num_steps_completed=1))
    callback.on_exception(None, unit, RuntimeError())
    assert unit.logger == "wandb"
    callback.on_train_start(None, unit)
    callback.on_train_step_start(None, unit)
    assert unit.logger is None
    callback.on_exception(None, unit, RuntimeError())
    assert unit.logger == "wandb"


def test_zero_steps_are_refused():
    with pytest.raises(ConfigError, match=KEY):
        SparseLogger(every=0)


def test_it_comes_with_the_logger_alone():
    assert "sparse_logger" not in resolve(DEBUG).runner.callbacks
    config = resolve(DEBUG, ["logger=wandb", f"{KEY}=4", "job.logger.project=mine"])
    assert config.runner.callbacks.sparse_logger.every == 4
    assert config.job.logger.project == "mine"


def test_a_training_reports_some_steps_and_all_evaluations(tiny_data, tmp_path, monkeypatch):
    reports = []

    class Recorder:
        def log(self, figures, step=None, commit=False):
            reports.append((step, {name.split("/")[0] for name in figures}))

        def log_summary(self, figures):
            pass

        def mark_preempting(self):
            pass

    monkeypatch.setattr(WandBSingletonLogger, "init_wandb", lambda **_: None)
    monkeypatch.setattr(WandBSingletonLogger, "get_instance", lambda: Recorder())
    train(
        DEBUG, f"data.root={tiny_data}", f"job.run_dir={tmp_path}", "job.timestamp_id=run",
        "steps=5", "evaluate_every=3", "~runner.callbacks.checkpoint", "~checkpoint_every",
        "logger=wandb", f"{KEY}=2",
    )  # fmt: skip
    assert [step for step, kinds in reports if "train" in kinds and step is not None] == [0, 2, 4]
    assert sum("val" in kinds for _, kinds in reports) == 2
