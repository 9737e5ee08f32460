"""Files of predictions that are damaged or do not hold what they should."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from est_ocp.errors import DataError
from est_ocp.evaluation import SplitPredictions
from est_ocp.evaluation.predictions import read_stamp
from est_ocp.evaluation.submission import write_submission
from est_ocp.evaluation.submission_check import SPLITS, check_submission
from tests.evaluation.damage import damaged_copies


@pytest.fixture
def predictions() -> SplitPredictions:
    rng = np.random.default_rng(0)
    natoms = rng.integers(2, 9, 40)
    count = natoms.sum()
    return SplitPredictions(
        ids=np.array([f"{i}_0" for i in range(40)]),
        energy=rng.normal(size=40).astype(np.float32),
        forces=rng.normal(size=(count, 3)).astype(np.float32),
        natoms=natoms,
        fixed=rng.random(count) < 0.3,
        energy_label=np.zeros(40, np.float32),
        forces_label=np.zeros((count, 3), np.float32),
    )


def test_damage_is_always_the_same_clear_error(predictions, tmp_path):
    predictions.save(tmp_path / "val_id.npz", {"checkpoint": {"sha256": "0"}})
    read = 0
    for file in damaged_copies(tmp_path / "val_id.npz", tmp_path / "copy.npz"):
        read_stamp(file)
        with contextlib.suppress(DataError):
            SplitPredictions.load(file)
            read += 1
    assert read < 50


def test_damage_to_a_leaderboard_file_is_a_clear_error(predictions, tmp_path):
    write_submission(tmp_path / "file.npz", dict.fromkeys(SPLITS, predictions))
    for file in damaged_copies(tmp_path / "file.npz", tmp_path / "copy.npz"):
        with contextlib.suppress(DataError):
            check_submission(file)


@pytest.mark.parametrize("name", ["energy", "fixed", "forces", "energy_label", "forces_label"])
def test_arrays_of_another_number_of_rows_are_refused(predictions, name, tmp_path):
    fields = dict(vars(predictions))
    np.savez(tmp_path / "file.npz", **{**fields, name: fields[name][:-1]})
    with pytest.raises(DataError, match=f"'{name}' has shape"):
        SplitPredictions.load(tmp_path / "file.npz")
