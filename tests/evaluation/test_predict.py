"""Predictions of a checkpoint: order, labels, averaged weights, calculator."""

from __future__ import annotations

import ase
import ase.data
import hydra
import numpy as np
import pytest
import torch
from fairchem.core import FAIRChemCalculator

from est_ocp.cli.config import resolve
from est_ocp.cli.evaluate import evaluate
from est_ocp.data import OC20LmdbDataset
from est_ocp.errors import CheckpointError, DataError
from est_ocp.evaluation import SplitPredictions, find_inference_checkpoint, load_unit
from est_ocp.evaluation.checkpoint import quiet, read_checkpoint, run_dir_of
from est_ocp.evaluation.predict import merge
from est_ocp.evaluation.split_data import split_names
from tests.tolerances import TOL
from tests.training.launch import CONFIGS


@pytest.fixture(scope="module")
def predicted(tiny_run, tmp_path_factory):
    """Folder of the tiny run's predictions."""
    out = tmp_path_factory.mktemp("predictions")
    evaluate(tiny_run, out=out)
    return out


def to_atoms(sample) -> ase.Atoms:
    return ase.Atoms(
        numbers=sample.atomic_numbers.numpy(),
        positions=sample.pos.numpy(),
        cell=sample.cell[0].numpy(),
        pbc=True,
    )


def test_every_structure_once_in_the_order_of_the_files(predicted, tiny_data):
    for split in ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both"):
        dataset = OC20LmdbDataset({"src": str(tiny_data / split)})
        predictions = SplitPredictions.load(predicted / f"{split}.npz")
        samples = [dataset[i] for i in range(len(dataset))]
        assert predictions.ids.tolist() == [
            s.sid[0] if isinstance(s.sid, list) else s.sid for s in samples
        ]
        np.testing.assert_allclose(
            predictions.energy_label, [float(s.energy) for s in samples], rtol=1e-6
        )
        np.testing.assert_allclose(
            predictions.forces_label, np.concatenate([s.forces.numpy() for s in samples])
        )
        np.testing.assert_array_equal(
            predictions.fixed, np.concatenate([s.fixed.numpy() == 1 for s in samples])
        )


def test_the_calculator_gives_the_batch_s_energies_and_forces(predicted, tiny_run, tiny_data):
    unit = load_unit(tiny_run)
    predictions = SplitPredictions.load(predicted / "val_id.npz")
    dataset = OC20LmdbDataset({"src": str(tiny_data / "val_id")})
    forces = np.split(predictions.forces, predictions.chunk_idx)
    for i in range(len(dataset)):
        atoms = to_atoms(dataset[i])
        with quiet():
            atoms.calc = FAIRChemCalculator(unit, task_name="oc20")
            energy = atoms.get_potential_energy()
        assert energy == pytest.approx(predictions.energy[i], abs=TOL[torch.float32])
        np.testing.assert_allclose(atoms.get_forces(), forces[i], atol=TOL[torch.float32])


def test_averaged_weights_are_used(tiny_run):
    content = read_checkpoint(tiny_run)
    unit = load_unit(tiny_run)
    raw, averaged = content.model_state_dict, dict(unit.model.module.named_parameters())
    name = next(n for n in averaged if n.endswith("weight"))
    stored = next(v for k, v in content.ema_state_dict.items() if k.endswith(name))
    torch.testing.assert_close(averaged[name].detach(), stored)
    assert not torch.equal(stored, next(v for k, v in raw.items() if k.endswith(name)))


def test_the_run_s_own_evaluation_agrees(predicted, tiny_run):
    from est_ocp.evaluation import s2ef_metrics
    from est_ocp.training import metrics_file

    rows = metrics_file.read(tiny_run / "metrics.jsonl")
    logged = next(r for r in rows if r["kind"] == "eval")["splits"]
    for split in ("val_id", "val_ood_cat"):
        ours = s2ef_metrics(SplitPredictions.load(predicted / f"{split}.npz"))
        assert ours["energy_mae"] == pytest.approx(logged[split]["energy_mae"], rel=1e-4)
        assert ours["forces_mae"] == pytest.approx(logged[split]["forces_mae"], rel=1e-4)
        assert ours["forces_cosine"] == pytest.approx(
            logged[split]["forces_cosine_similarity"], abs=1e-4
        )


def test_elements_that_training_has_not_met_are_named(tiny_run, tiny_data, tmp_path, capsys):
    splits = ("val_ood_cat", "val_ood_both")
    in_training, *in_splits = (
        {z for sample in split for z in sample.atomic_numbers.tolist()}
        for name in ("train", *splits)
        for split in [OC20LmdbDataset({"src": str(tiny_data / name)})]
    )
    content = read_checkpoint(tiny_run)
    # The six steps take less than an epoch.
    met = {*content.ema_state_dict["module.trained_elements.met"].nonzero().flatten().tolist()}
    assert met
    assert met <= in_training
    evaluate(tiny_run, out=tmp_path, splits=splits)
    lines = capsys.readouterr().err.splitlines()
    for name, elements in zip(splits, in_splits, strict=True):
        told = [line for line in lines if line.startswith(f"{name}: this model met no")]
        strange = [ase.data.chemical_symbols[z] for z in sorted(elements - met)]
        assert strange
        assert [line.split(" met no ")[1].split(" in training")[0] for line in told] == [
            ", ".join(strange)
        ]


def test_merging_joins_the_ranks_in_the_order_of_the_files():
    def part(samples):
        return {
            "sample": np.array(samples),
            "ids": np.array([f"s{s}" for s in samples]),
            "natoms": np.array([s + 1 for s in samples]),
            "energy": np.array([float(s) for s in samples]),
            "energy_label": np.array([float(s) for s in samples]),
            "forces": np.concatenate([np.full((s + 1, 3), float(s)) for s in samples]),
            "forces_label": np.concatenate([np.full((s + 1, 3), float(s)) for s in samples]),
            "fixed": np.concatenate([np.zeros(s + 1, bool) for s in samples]),
        }

    merged = merge([part([4, 0, 2]), part([3, 1])])
    assert merged.ids.tolist() == ["s0", "s1", "s2", "s3", "s4"]
    assert merged.natoms.tolist() == [1, 2, 3, 4, 5]
    for i, forces in enumerate(np.split(merged.forces, merged.chunk_idx)):
        assert (forces == i).all()
    unlabelled = part([0, 1])
    unlabelled["forces_label"][0] = np.inf
    assert merge([unlabelled]).forces_label is None
    assert merge([unlabelled]).energy_label is not None


def test_splits_of_several_datasets_keep_their_full_names():
    assert split_names(["oc20.val_id", "oc20.val_ood"]) == {
        "oc20.val_id": "val_id",
        "oc20.val_ood": "val_ood",
    }
    for names in (["md.val_id", "oc20.val_id"], ["oc20.val_id", "val_id"], ["val_id"]):
        assert split_names(names) == {name: name for name in names}


def test_a_path_may_be_a_file_a_folder_or_a_run(tiny_run):
    final = tiny_run / "checkpoints" / "final"
    expected = final / "inference_ckpt.pt"
    assert {find_inference_checkpoint(p) for p in (expected, final, tiny_run)} == {expected}
    assert run_dir_of(final) == tiny_run


def test_wrong_checkpoints_are_clear_errors(tiny_run, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_unit(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_unit(tmp_path)
    whole = find_inference_checkpoint(tiny_run).read_bytes()
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_unit(damaged)
    other = tmp_path / "other.pt"
    torch.save({"weights": 1}, other)
    with pytest.raises(CheckpointError, match="not a fairchem inference checkpoint"):
        load_unit(other)


def test_weights_of_another_model_are_a_clear_error(tiny_run, tmp_path):
    content = read_checkpoint(tiny_run)
    content.model_config["backbone"]["channels"] = 16
    torch.save(content, tmp_path / "mixed.pt")
    with pytest.raises(CheckpointError, match="do not fit"):
        load_unit(tmp_path / "mixed.pt")


def test_the_predict_config_builds(tiny_run, tiny_data):
    cfg = resolve(
        CONFIGS / "s2ef" / "predict.yml",
        [f"checkpoint={tiny_run}", f"data.root={tiny_data}", "data=demo_s2ef", "cluster=local_cpu"],
    )
    runner = hydra.utils.instantiate(cfg.runner)
    assert len(runner.dataloader.dataset) == 20


def test_an_error_in_a_worker_is_shown_as_it_was_raised():
    wrapped = DataError(
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        'last):\n  File "x.py", line 1, in f\nest_ocp.errors.DataError: record 5 has no atoms\n'
    )
    assert str(wrapped) == "record 5 has no atoms"
    plain = DataError("record 5 has no atoms")
    assert str(plain) == "record 5 has no atoms"
