"""``est-ocp relax``: inputs, results, restarts, IS2RE by relaxation, errors."""

from __future__ import annotations

import csv

import ase.io
import numpy as np
import pytest
import torch
from ase.constraints import FixAtoms
from ase.io import Trajectory

from est_ocp.cli.main import main
from est_ocp.evaluation import SplitPredictions
from est_ocp.relaxation import BatchedRelaxer, BatchEvaluator
from est_ocp.relaxation.folder import RelaxationFolder
from est_ocp.relaxation.structures import load_all, open_source
from tests.models.systems import crystal, slab, water
from tests.relaxation.checkpoints import is2re_records, with_nan, write_is2re
from tests.tolerances import TOL


def relax(*words) -> int:
    return main(["relax", *map(str, words), "--device", "cpu"])


def table(folder) -> dict[str, dict[str, str]]:
    with (folder / "summary.csv").open(newline="") as stream:
        return {row["name"]: row for row in csv.DictReader(stream)}


@pytest.fixture(scope="module")
def relaxed(s2ef, split, tmp_path_factory):
    """Results of the split, three steps, and what was printed."""
    out = tmp_path_factory.mktemp("relaxed") / "out"
    assert relax(split, "--checkpoint", s2ef, "--out", out, "--steps", 3, "--fmax", 1e-6) == 0
    return out


@pytest.fixture
def files(tmp_path):
    """A molecule, two frames with constraints, tags and information, and a bulk cell."""
    ase.io.write(tmp_path / "water.xyz", water())
    frames = [slab(seed=i) for i in range(2)]
    for i, atoms in enumerate(frames):
        atoms.set_constraint(FixAtoms(np.flatnonzero(atoms.get_tags() == 0)))
        atoms.info["label"] = f"frame {i}"
    ase.io.write(tmp_path / "slabs.traj", frames)
    ase.io.write(tmp_path / "surface.cif", slab("Pd"))
    ase.io.write(tmp_path / "POSCAR", frames[0])
    return [tmp_path / name for name in ("water.xyz", "slabs.traj", "surface.cif", "POSCAR")]


def test_files_that_ase_reads(files, s2ef, tmp_path, capsys):
    out = tmp_path / "out"
    assert relax(*files, "--checkpoint", s2ef, "--out", out, "--steps", 2, "--fmax", 1e-6) == 0
    assert "5 of 5 structures" in capsys.readouterr().out
    names = ["water", "slabs-0", "slabs-1", "surface", "POSCAR"]
    assert list(table(out)) == names
    ends = Trajectory(out / "relaxed.traj")
    assert [atoms.info["structure_name"] for atoms in ends] == names
    assert not ends[0].pbc.any()
    assert ends[3].pbc.all()
    frame = ends[1]
    assert frame.info["label"] == "frame 0"
    assert frame.get_tags().tolist() == slab().get_tags().tolist()
    fixed = frame.constraints[0].index
    assert sorted(fixed) == np.flatnonzero(slab().get_tags() == 0).tolist()
    np.testing.assert_array_equal(frame.positions[fixed], slab(seed=0).positions[fixed])
    assert len(ends[4].constraints) == 1
    for atoms, row in zip(ends, table(out).values(), strict=True):
        assert atoms.get_potential_energy() == float(row["energy_last"])
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() == pytest.approx(float(row["fmax"]))
        assert row["steps"] == "2"
        assert row["converged"] == "no"


def test_the_split_s_energies_are_those_of_one_at_a_time(relaxed, split, unit):
    predictions = SplitPredictions.load(relaxed / "val_id.npz")
    records = is2re_records()
    assert predictions.ids.tolist() == [str(r["sid"]) for r in records]
    assert predictions.forces is None
    assert predictions.natoms.tolist() == [len(r["pos"]) for r in records]
    assert predictions.fixed.tolist() == [bool(f) for r in records for f in r["fixed"]]
    ends = Trajectory(relaxed / "relaxed.traj")
    for i, (name, load) in enumerate(load_all([open_source(split)]).items()):
        atoms = load()
        relaxer = BatchedRelaxer(BatchEvaluator(unit), steps=3, fmax=1e-6)
        (alone,) = relaxer.run([(name, atoms)])
        assert predictions.energy[i] == pytest.approx(alone.energy_last, abs=TOL[torch.float32])
        np.testing.assert_allclose(
            ends[i].positions, alone.atoms.positions, atol=TOL[torch.float32]
        )
        assert ends[i].info["sid"] == name
        held = np.array(records[i]["fixed"], dtype=bool)
        moved = np.abs(ends[i].positions - atoms.positions).max(axis=1)
        assert (moved[held] == 0).all()
        assert (moved[~held] > 0).all()


def test_labels_give_mae_and_ewt(relaxed, split, s2ef, capsys):
    assert relax(split, "--checkpoint", s2ef, "--out", relaxed, "--steps", 3, "--fmax", 1e-6) == 0
    *_, line = capsys.readouterr().out.strip().splitlines()
    predictions = SplitPredictions.load(relaxed / "val_id.npz")
    labels = np.array([r["y_relaxed"] for r in is2re_records()])
    error = np.abs(predictions.energy - labels)
    assert line.split() == [
        "val_id", "5", f"{1000 * error.mean():.1f}", f"{100 * (error < 0.02).mean():.2f}"
    ]  # fmt: skip


def test_a_test_split_has_no_labels(s2ef, tmp_path, capsys):
    folder = write_is2re(tmp_path / "test_id", is2re_records(2, labels=False))
    out = tmp_path / "out"
    assert relax(folder / "data.lmdb", "--checkpoint", s2ef, "--out", out, "--steps", 0) == 0
    predictions = SplitPredictions.load(out / "test_id.npz")
    assert predictions.energy_label is None
    assert np.isfinite(predictions.energy).all()
    assert "MAE" not in capsys.readouterr().out


def test_an_interrupted_run_goes_on(s2ef, split, relaxed, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    words = (split, "--checkpoint", s2ef, "--out", out, "--steps", 3, "--fmax", 1e-6)
    add, added = RelaxationFolder.add, []

    def interrupted(self, end):
        if len(added) == 2:
            raise KeyboardInterrupt
        added.append(end.name)
        return add(self, end)

    monkeypatch.setattr(RelaxationFolder, "add", interrupted)
    assert relax(*words, "--batch-size", 1) == 130
    assert not (out / "summary.csv").exists()
    with (out / "parts" / "1-of-1.jsonl").open("a") as stream:
        stream.write('\n{"name": "cut off')
    monkeypatch.setattr(
        RelaxationFolder, "add", lambda self, end: added.append(end.name) or add(self, end)
    )
    assert relax(*words) == 0
    assert added == [str(r["sid"]) for r in is2re_records()]
    assert table(out).keys() == table(relaxed).keys()
    for name, row in table(relaxed).items():
        assert float(row["energy_last"]) == pytest.approx(
            float(table(out)[name]["energy_last"]), abs=TOL[torch.float32]
        )
    assert relax(*words) == 0
    assert len(added) == 5


def test_parts_share_a_folder(s2ef, split, relaxed, tmp_path, capsys):
    out = tmp_path / "out"
    words = (split, "--checkpoint", s2ef, "--out", out, "--steps", 3, "--fmax", 1e-6)
    assert relax(*words, "--part", "2/2") == 0
    assert "3 are left to other parts" in capsys.readouterr().out
    assert not (out / "val_id.npz").exists()
    assert not (out / "relaxed.traj").exists()
    assert relax(*words, "--part", "1/2") == 0
    whole, joined = (SplitPredictions.load(f / "val_id.npz") for f in (relaxed, out))
    assert whole.ids.tolist() == joined.ids.tolist()
    np.testing.assert_allclose(whole.energy, joined.energy, atol=TOL[torch.float32])
    assert len(Trajectory(out / "relaxed.traj")) == 5


def test_a_damaged_structure_is_named_and_the_others_are_relaxed(s2ef, tmp_path, capsys):
    records = is2re_records(3)
    records[1] = with_nan(records[1])
    folder, out = write_is2re(tmp_path / "val_id", records), tmp_path / "out"
    assert relax(folder, "--checkpoint", s2ef, "--out", out, "--steps", 1) == 1
    printed = capsys.readouterr().out
    assert f"  {records[1]['sid']}: " in printed
    assert "1 failed" in printed
    assert "1 structures have no energy" in printed
    assert SplitPredictions.load(out / "val_id.npz").ids.tolist() == [
        str(records[i]["sid"]) for i in (0, 2)
    ]
    assert "not finite" in table(out)[str(records[1]["sid"])]["error"]
    assert len(Trajectory(out / "relaxed.traj")) == 2


def test_a_failure_underway_counts_with_its_last_energy(s2ef, tmp_path, monkeypatch, capsys):
    records = is2re_records(2)
    folder, out = write_is2re(tmp_path / "val_id", records), tmp_path / "out"
    evaluate, calls = BatchEvaluator.__call__, []

    def failing(self, structures):
        errors = evaluate(self, structures)
        calls.append(len(structures))
        if len(calls) == 3:
            errors[1] = "exploded"
        return errors

    words = (folder, "--checkpoint", s2ef, "--out", out, "--steps", 3, "--fmax", 1e-6)
    monkeypatch.setattr(BatchEvaluator, "__call__", failing)
    assert relax(*words) == 1
    assert f"{records[1]['sid']}: exploded at step 2" in capsys.readouterr().out
    row = table(out)[str(records[1]["sid"])]
    predictions = SplitPredictions.load(out / "val_id.npz")
    assert predictions.energy[1] == float(row["energy_last"]) != float(row["energy_first"])
    assert calls == [2, 2, 2, 1]
    monkeypatch.undo()
    assert relax(*words) == 0
    assert table(out)[str(records[1]["sid"])]["error"] == ""
    assert len(Trajectory(out / "relaxed.traj")) == 2


def test_names_of_several_files(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        ase.io.write(tmp_path / folder / "CONTCAR", slab())
    both = [open_source(tmp_path / folder / "CONTCAR") for folder in ("a", "b")]
    assert list(load_all(both)) == ["a-CONTCAR", "b-CONTCAR"]


def _error(words, capsys) -> str:
    assert relax(*words) == 2
    lines = [s for s in capsys.readouterr().err.splitlines() if s.startswith("est-ocp: error:")]
    assert len(lines) == 1
    return lines[0]


def test_errors_are_one_sentence(s2ef, is2re, split, relaxed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ase.io.write(tmp_path / "water.xyz", water())
    (tmp_path / "bad.cif").write_text("nothing\n")
    (tmp_path / "empty").mkdir()
    twice = write_is2re(tmp_path / "twice", is2re_records(2) + is2re_records(1))
    fine = ("--checkpoint", s2ef)
    cases = [
        ((tmp_path / "no.traj", *fine), "no.traj does not exist"),
        ((tmp_path / "empty", *fine), "holds no *.lmdb"),
        ((tmp_path / "bad.cif", *fine), "bad.cif cannot be read as structures"),
        ((twice, *fine), "sid 100001 twice"),
        ((tmp_path / "water.xyz", tmp_path / "water.xyz", *fine), "of the same name"),
        ((split, split, *fine), "both called 'val_id'"),
        ((tmp_path / "water.xyz", "--checkpoint", is2re), "take an S2EF checkpoint"),
        ((tmp_path / "water.xyz", *fine, "--fmax", -1), "fmax must be above 0"),
        ((tmp_path / "water.xyz", *fine, "--part", "3/2", "--out", tmp_path / "o"), "part 3/2"),
        ((tmp_path / "water.xyz", *fine, "--part", "half", "--out", tmp_path / "o"), "K/N"),
        ((split, *fine, "--out", relaxed, "--fmax", 0.5), "other settings (fmax, steps)"),
    ]
    for words, message in cases:
        assert message in _error(words, capsys)
    assert not list(tmp_path.glob("*_relaxed"))


def test_a_changed_input_does_not_go_on(s2ef, tmp_path, capsys):
    file = tmp_path / "water.xyz"
    words = (file, "--checkpoint", s2ef, "--out", tmp_path / "out", "--steps", 1)
    ase.io.write(file, water())
    assert relax(*words) == 0
    ase.io.write(file, crystal())
    assert "other settings (inputs)" in _error(words, capsys)
