"""A SLURM cluster for the tests of this folder."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import pytest

from tests.cluster.one_host import NoStart, running, why_not
from tests.training.fixtures import tiny_data, tiny_run

__all__ = ["tiny_data", "tiny_run"]


@pytest.fixture(scope="session")
def cluster():
    """Two nodes on this machine, and an environment in which jobs go to them."""
    if reason := why_not():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        # not pytest's folder, whose path may be too long for a socket
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-"))
        try:
            started = stack.enter_context(running(Path(folder)))
        except NoStart as error:
            pytest.skip(f"SLURM is installed but does not start here: {error}")
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in (started.environment | {"OMP_NUM_THREADS": "1"}).items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        patch.delenv("SLURM_SUBMIT_HOST", raising=False)
        yield started
