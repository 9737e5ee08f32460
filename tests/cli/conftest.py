"""Shared fixtures: a trained model and data of each task."""

from __future__ import annotations

import os
import shutil

import pytest

from est_ocp.data import load_demo_frames, write_oc20_lmdb
from est_ocp.data.demo_splits import TEST_SPLITS, unlabelled_records
from tests.training.fixtures import tiny_data, tiny_is2re, tiny_is2re_run, tiny_run
from tests.training.launch import DEBUG, DEBUG_IS2RE

__all__ = ["tiny_data", "tiny_is2re", "tiny_is2re_run", "tiny_run"]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep indexes of the tests' data out of the user's cache."""
    before = os.environ.get("EST_OCP_CACHE")
    os.environ["EST_OCP_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["EST_OCP_CACHE"]
    else:
        os.environ["EST_OCP_CACHE"] = before


@pytest.fixture(scope="module")
def s2ef(tiny_run, tiny_data, tmp_path_factory):
    """Arguments for the S2EF run and its data, now with test splits too."""
    data = tmp_path_factory.mktemp("s2ef")
    shutil.copytree(tiny_data, data, dirs_exist_ok=True)
    frames = load_demo_frames()
    for split in TEST_SPLITS:
        labelled = frames.of_split(split.replace("test", "val"))
        records = list(unlabelled_records(labelled, with_fid=True))[:5]
        write_oc20_lmdb(data / split, records, shards=2)
    return ["--checkpoint", str(tiny_run), "--config", str(DEBUG), f"data.root={data}"]


@pytest.fixture(scope="module")
def is2re(tiny_is2re_run, tiny_is2re):
    """Arguments for the IS2RE run and its data."""
    return [
        "--checkpoint", str(tiny_is2re_run), "--config", str(DEBUG_IS2RE),
        f"data.root={tiny_is2re}",
    ]  # fmt: skip
