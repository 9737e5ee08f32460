"""Fixtures that the tests of training, evaluation and the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.launch import DEBUG, train, write_tiny_data


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Folder of a tiny set in OC20's format."""
    return write_tiny_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tmp_path_factory) -> Path:
    """Run folder of a six-step training with a checkpoint every third step."""
    folder = tmp_path_factory.mktemp("runs")
    train(
        DEBUG,
        f"data.root={tiny_data}",
        f"job.run_dir={folder}",
        "job.timestamp_id=whole",
        "steps=6",
        "checkpoint_every=3",
        "max_eval_batches=null",
        "runner.callbacks.metrics.tensorboard=true",
    )
    return folder / "whole"
