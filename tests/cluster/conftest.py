"""A SLURM cluster for the tests of this folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.cluster.one_host import running, why_not
from tests.training.fixtures import tiny_data, tiny_run

__all__ = ["tiny_data", "tiny_run"]


@pytest.fixture(scope="session")
def cluster():
    """Two nodes on this machine, and an environment in which jobs go to them."""
    if reason := why_not():
        pytest.skip(reason)
    # not pytest's folder, whose path may be too long for a socket
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        running(Path(folder)) as started,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in (started.environment | {"OMP_NUM_THREADS": "1"}).items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        patch.delenv("SLURM_SUBMIT_HOST", raising=False)
        yield started
