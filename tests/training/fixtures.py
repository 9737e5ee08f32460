"""Fixtures that the tests of training, evaluation and the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.launch import (
    DEBUG,
    DEBUG_IS2RE,
    IS2RS,
    train,
    write_tiny_data,
    write_tiny_is2re,
)


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


@pytest.fixture(scope="session")
def tiny_is2re(tmp_path_factory) -> Path:
    """Folder that holds ``is2re/<split>/data.lmdb`` of a tiny set in OC20's format."""
    return write_tiny_is2re(tmp_path_factory.mktemp("tiny-is2re"))


@pytest.fixture(scope="session")
def tiny_is2re_run(tiny_is2re, tmp_path_factory) -> Path:
    """Run folder of an IS2RE training: 42 steps, 7 epochs, a checkpoint inside the last."""
    return _is2re_run(tiny_is2re, tmp_path_factory.mktemp("runs-is2re"))


@pytest.fixture(scope="session")
def tiny_is2rs_run(tiny_is2re, tmp_path_factory) -> Path:
    """The same with the auxiliary task IS2RS and noisy nodes."""
    return _is2re_run(tiny_is2re, tmp_path_factory.mktemp("runs-is2rs"), *IS2RS)


def _is2re_run(data: Path, folder: Path, *overrides: str) -> Path:
    train(
        DEBUG_IS2RE,
        f"data.root={data}",
        f"job.run_dir={folder}",
        "job.timestamp_id=whole",
        "steps=42",
        "checkpoint_every=39",
        "max_eval_batches=null",
        *overrides,
    )
    return folder / "whole"
