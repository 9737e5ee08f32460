"""Shared fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

from est_ocp.evaluation import load_unit
from tests.relaxation.checkpoints import is2re_records, write_checkpoint, write_is2re


@pytest.fixture(scope="session")
def s2ef(tmp_path_factory) -> Path:
    """Checkpoint with random weights that predicts energies and forces."""
    return write_checkpoint(tmp_path_factory.mktemp("s2ef") / "inference_ckpt.pt")


@pytest.fixture(scope="session")
def is2re(tmp_path_factory) -> Path:
    """Checkpoint with random weights that predicts energies alone."""
    file = tmp_path_factory.mktemp("is2re") / "inference_ckpt.pt"
    return write_checkpoint(file, forces=False)


@pytest.fixture(scope="session")
def unit(s2ef):
    """fairchem's predict unit of the S2EF checkpoint."""
    return load_unit(s2ef)


@pytest.fixture(scope="session")
def split(tmp_path_factory) -> Path:
    """IS2RE split of five structures with labels."""
    return write_is2re(tmp_path_factory.mktemp("lmdb") / "val_id", is2re_records())
