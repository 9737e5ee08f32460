"""Metrics against fairchem's and against figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fairchem.core.units.mlip_unit import _metrics as fairchem_metrics

from est_ocp.errors import CheckpointError, DataError
from est_ocp.evaluation import (
    SplitPredictions,
    is2re_metrics,
    mean_row,
    metrics_of,
    s2ef_metrics,
    task_of,
    trivial_predictions,
)
from est_ocp.evaluation.predictions import read_stamp
from est_ocp.evaluation.published import SPLITS, published, published_text
from est_ocp.evaluation.results import Results


@pytest.fixture
def predictions():
    rng = np.random.default_rng(3)
    natoms = np.array([3, 5, 4, 6, 2])
    count = natoms.sum()
    fixed = rng.random(count) < 0.4
    fixed[np.cumsum(natoms) - 1] = False
    forces = rng.normal(size=(count, 3))
    energy = rng.normal(size=5)
    noise = np.repeat([[0.005], [0.1], [0.0], [0.01], [0.0]], natoms, axis=0)
    return SplitPredictions(
        ids=np.array([f"{i}_0" for i in range(5)]),
        energy=energy + np.array([0.01, -0.019, 0.021, 0.0, 0.5]),
        forces=forces + rng.normal(size=(count, 3)) * noise,
        natoms=natoms,
        fixed=fixed,
        energy_label=energy,
        forces_label=forces,
    )


def test_metrics_agree_with_fairchem(predictions):
    free = ~predictions.fixed
    owner = np.repeat(np.arange(5), predictions.natoms)
    prediction = {
        "energy": torch.tensor(predictions.energy),
        "forces": torch.tensor(predictions.forces[free]),
    }
    target = {
        "energy": torch.tensor(predictions.energy_label),
        "forces": torch.tensor(predictions.forces_label[free]),
        "natoms": torch.tensor(np.bincount(owner[free], minlength=5)),
    }

    def value(name, key):
        return getattr(fairchem_metrics, name)(prediction, target, key=key).metric

    ours = s2ef_metrics(predictions)
    assert ours["energy_mae"] == pytest.approx(value("mae", "energy"))
    assert ours["forces_mae"] == pytest.approx(value("mae", "forces"))
    assert ours["forces_cosine"] == pytest.approx(value("cosine_similarity", "forces"), abs=1e-6)
    assert ours["ewt"] == pytest.approx(value("energy_within_threshold", "energy"))
    assert ours["efwt"] == pytest.approx(value("energy_forces_within_threshold", "energy"))
    assert 0 < ours["efwt"] < ours["ewt"] < 1


def test_fixed_atoms_do_not_count(predictions):
    before = s2ef_metrics(predictions)
    predictions.forces[predictions.fixed] += 100.0
    assert s2ef_metrics(predictions) == before
    predictions.forces[~predictions.fixed] += 100.0
    assert s2ef_metrics(predictions)["forces_mae"] > 50


def test_the_trivial_predictor(predictions):
    trivial = s2ef_metrics(trivial_predictions(predictions, energy=0.25))
    free = predictions.forces_label[~predictions.fixed]
    assert trivial["energy_mae"] == pytest.approx(np.abs(predictions.energy_label - 0.25).mean())
    assert trivial["forces_mae"] == pytest.approx(np.abs(free).mean())
    assert trivial["forces_cosine"] == 0


def test_perfect_predictions(predictions):
    perfect = SplitPredictions(
        **{
            **vars(predictions),
            "energy": predictions.energy_label,
            "forces": predictions.forces_label,
        }
    )
    expected = {
        "energy_mae": 0, "forces_mae": 0, "forces_cosine": 1, "ewt": 1, "efwt": 1
    }  # fmt: skip
    assert s2ef_metrics(perfect) == pytest.approx(expected)


def test_predictions_survive_a_file(predictions, tmp_path):
    predictions.save(tmp_path / "val_id.npz")
    again = SplitPredictions.load(tmp_path / "val_id.npz")
    for name, value in vars(predictions).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    with np.load(tmp_path / "val_id.npz") as file:
        parts = np.split(file["forces"], file["chunk_idx"])
    assert [len(p) for p in parts] == predictions.natoms.tolist()
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="not a file of predictions"):
        SplitPredictions.load(tmp_path / "bad.npz")


def test_free_atoms_only_keeps_the_structures(predictions):
    free = predictions.free_atoms_only()
    assert free.natoms.sum() == (~predictions.fixed).sum()
    assert len(free) == len(predictions)
    np.testing.assert_array_equal(free.forces, predictions.forces[~predictions.fixed])
    assert s2ef_metrics(free) == s2ef_metrics(predictions)


def test_missing_labels_and_bad_numbers_are_errors(predictions):
    unlabelled = SplitPredictions(**{**vars(predictions), "energy_label": None})
    with pytest.raises(DataError, match="no labels"):
        s2ef_metrics(unlabelled)
    predictions.energy[0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        s2ef_metrics(predictions)


def test_the_mean_row_and_the_order_of_the_splits(predictions):
    splits = {"val_ood_both": predictions, "val_id": trivial_predictions(predictions, 0.0)}
    results = Results.of(splits, train_mean_energy=0.0)
    assert list(results.model) == ["val_id", "val_ood_both", "mean"]
    assert results.model["mean"] == pytest.approx(
        mean_row([results.model["val_id"], results.model["val_ood_both"]])
    )
    assert results.model["val_id"] == results.trivial["val_id"]
    text = results.text()
    assert text.count("trivial predictor") == 3
    assert f"{1000 * results.model['mean']['forces_mae']:.2f}" in text
    assert "force MAE (meV/Å)" in text
    assert Results.of(splits).trivial == {}


@pytest.fixture
def relaxed(predictions):
    """The same predictions as those of an IS2RE model."""
    return SplitPredictions(**{**vars(predictions), "forces": None, "forces_label": None})


def test_is2re_metrics_by_hand(relaxed):
    assert relaxed.task == "is2re"
    assert is2re_metrics(relaxed) == pytest.approx(
        {"energy_mae": (0.01 + 0.019 + 0.021 + 0.5) / 5, "ewt": 3 / 5}
    )
    assert metrics_of(relaxed) == is2re_metrics(relaxed)
    with pytest.raises(DataError, match="no forces"):
        s2ef_metrics(relaxed)
    free = relaxed.free_atoms_only()
    assert free.forces is None
    assert is2re_metrics(free) == is2re_metrics(relaxed)


def test_is2re_files_have_no_forces(relaxed, tmp_path):
    relaxed.save(tmp_path / "val_id.npz", stamp={"a": [1, None]})
    assert read_stamp(tmp_path / "val_id.npz") == {"a": [1, None]}
    again = SplitPredictions.load(tmp_path / "val_id.npz")
    assert again.forces is None
    np.testing.assert_array_equal(again.energy, relaxed.energy)
    with np.load(tmp_path / "val_id.npz") as file:
        assert not {"forces", "chunk_idx"} & set(file.files)
    whole = (tmp_path / "val_id.npz").read_bytes()
    (tmp_path / "val_id.npz").write_bytes(whole[: len(whole) // 2])
    assert read_stamp(tmp_path / "val_id.npz") is None
    assert read_stamp(tmp_path / "nothing.npz") is None


def test_tasks_are_not_mixed(predictions, relaxed):
    with pytest.raises(DataError, match="different tasks"):
        Results.of({"val_id": predictions, "val_ood_ads": relaxed})


@pytest.mark.parametrize(
    ("names", "task"),
    [
        (["energy", "forces"], "s2ef"),
        (["energy", "forces", "expert_balance"], "s2ef"),
        (["energy"], "is2re"),
        (["energy", "position_delta"], "is2re"),
    ],
)
def test_the_task_of_a_checkpoint(names, task):
    assert task_of([{"name": name} for name in names]) == task


def test_a_checkpoint_without_energies_serves_no_task():
    with pytest.raises(CheckpointError, match="no task 'energy'"):
        task_of([{"name": "forces"}])


@pytest.mark.parametrize("task", ["s2ef", "is2re"])
def test_published_figures_have_sources_and_stand_beside_ours(task, predictions, relaxed):
    rows = published(task)
    for row in rows:
        assert row["source"].startswith("arXiv ")
        assert 2020 <= row["year"] <= 2026
        assert row["set"] in ("val", "unstated")
        assert any(row.get(split) for split in (*SPLITS, "mean"))
    est = [row for row in rows if row["model"].startswith("EST")]
    assert {r["mean"]["energy_mae_meV"] for r in est if "energy_mae_meV" in r.get("mean", {})} == (
        {229} if task == "s2ef" else set()
    )
    one = predictions if task == "s2ef" else relaxed
    results = Results.of({f"val_{split}": one for split in SPLITS})
    text = published_text(results)
    own = next(line for line in text.splitlines() if line.startswith("this checkpoint"))
    assert own.count(f"{1000 * results.model['mean']['energy_mae']:.1f}") == 5
    assert "OC20's own splits" in text
    few = published_text(Results.of({"val_id": one}))
    own = next(line for line in few.splitlines() if line.startswith("this checkpoint"))
    assert own.split()[-4:] == ["-"] * 4


def test_a_split_that_is_not_finite_is_named(predictions):
    bad = replace(predictions, energy=predictions.energy * np.nan)
    with pytest.raises(DataError, match="the split 'val_ood_ads': predictions or labels are not"):
        Results.of({"val_id": predictions, "val_ood_ads": bad})
