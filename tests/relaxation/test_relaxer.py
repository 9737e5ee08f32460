"""Batched relaxations against ASE's own, one structure at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength, FixedLine, FixedPlane
from ase.io import Trajectory
from ase.optimize import LBFGS
from fairchem.core import FAIRChemCalculator

from est_ocp.errors import CheckpointError, ConfigError, DataError
from est_ocp.evaluation import load_unit
from est_ocp.relaxation import OPTIMIZERS, BatchedRelaxer, BatchEvaluator
from tests.models.systems import single_atom, slab, water, wire
from tests.relaxation.checkpoints import write_checkpoint
from tests.tolerances import TOL


class Analytic:
    """ASE's effective-medium theory, with a record of the batches."""

    def __init__(self, fails=()):
        self.batches: list[list[str]] = []
        self.fails = fails

    def attach(self, atoms: Atoms) -> None:
        if len(atoms) == 1:
            raise DataError("one atom alone is refused here")
        atoms.calc = EMT()

    def __call__(self, structures):
        self.batches.append([str(atoms.symbols) for atoms in structures])
        errors = []
        for atoms in structures:
            atoms.get_forces()
            lost = str(atoms.symbols) in self.fails and len(self.batches) > 2
            errors.append("nothing left" if lost else None)
        return errors


def emt_structures() -> dict[str, Atoms]:
    """Slabs and molecules with different constraints, which need different numbers of steps."""
    fixed = slab(rattle=0.15)
    fixed.set_constraint(FixAtoms(np.flatnonzero(fixed.get_tags() == 0)))
    mixed = slab(seed=3, rattle=0.2)
    mixed.set_constraint([FixAtoms([0, 1]), FixedPlane([5], [0, 0, 1]), FixedLine([6], [0, 0, 1])])
    bond = molecule("CO2")
    bond.rattle(0.1, seed=2)
    bond.set_constraint(FixBondLength(0, 1))
    return {"fixed": fixed, "mixed": mixed, "bond": bond, "water": water()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_takes_ase_s_own_way(name):
    structures = emt_structures()
    relaxer = BatchedRelaxer(Analytic(), name, fmax=0.05, steps=25)
    ends = {end.name: end for end in relaxer.run(structures.items())}
    assert ends.keys() == structures.keys()
    for key, atoms in structures.items():
        atoms.calc = EMT()
        optimizer = OPTIMIZERS[name](atoms, logfile=None)
        converged = optimizer.run(fmax=0.05, steps=25)
        end = ends[key]
        assert end.steps == optimizer.nsteps
        assert end.converged == converged
        np.testing.assert_array_equal(end.atoms.positions, atoms.positions)
        assert end.energy_last == atoms.get_potential_energy() == end.atoms.get_potential_energy()
        assert end.fmax == pytest.approx(np.linalg.norm(atoms.get_forces(), axis=1).max())
        np.testing.assert_allclose(end.atoms.get_forces(), atoms.get_forces(), atol=1e-12)
    assert any(end.converged for end in ends.values()) or name in ("fire", "mdmin")


def test_constraints_hold_and_are_kept():
    structures = emt_structures()
    ends = {e.name: e for e in BatchedRelaxer(Analytic(), steps=10).run(structures.items())}
    before, after = structures["mixed"], ends["mixed"].atoms
    moved = after.positions - before.positions
    assert (moved[:2] == 0).all()
    assert moved[5, 2] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(moved[6, :2], 0, atol=1e-12)
    assert np.abs(moved[7:]).max() > 0.01
    assert ends["bond"].atoms.get_distance(0, 1) == pytest.approx(
        structures["bond"].get_distance(0, 1)
    )
    assert [type(c) for c in after.constraints] == [FixAtoms, FixedPlane, FixedLine]


def test_what_has_converged_leaves_and_the_next_one_comes():
    def metal(element: str, rattle: float) -> Atoms:
        atoms = fcc111(element, (2, 2, 3), vacuum=6.0, periodic=True)
        atoms.rattle(rattle, seed=1)
        return atoms

    evaluate = Analytic()
    relaxer = BatchedRelaxer(evaluate, fmax=0.02, steps=100, batch_size=3)
    sources = [("a", metal("Cu", 0.01)), ("b", metal("Pd", 0.1)), ("c", metal("Ag", 0.2))]
    ends = list(relaxer.run([*sources, ("last", lambda: metal("Al", 0.1))]))
    assert ends[0].name == "a"
    assert {e.name for e in ends} == {"a", "b", "c", "last"}
    assert all(e.converged and e.fmax < 0.02 for e in ends)
    assert sum(map(len, evaluate.batches)) == sum(e.steps + 1 for e in ends)
    changed = ends[0].steps + 1
    assert evaluate.batches[changed - 1] != evaluate.batches[changed]
    assert len(evaluate.batches[changed]) == 3
    assert "Al12" in evaluate.batches[changed]
    assert "Cu12" not in evaluate.batches[changed]
    assert len(evaluate.batches[-1]) < 3


def test_failures_are_named_and_alone():
    structures = emt_structures()
    whole = {e.name: e for e in BatchedRelaxer(Analytic(), steps=4).run(structures.items())}

    def unreadable() -> Atoms:
        raise DataError("record 7 is damaged")

    relaxer = BatchedRelaxer(Analytic(fails=[str(structures["fixed"].symbols)]), steps=4)
    items = {**structures, "one": single_atom(), "unreadable": unreadable}
    del items["mixed"]
    ends = {e.name: e for e in relaxer.run(items.items())}
    assert ends["fixed"].error == "nothing left at step 2"
    assert ends["fixed"].atoms is None
    assert ends["fixed"].energy_first == whole["fixed"].energy_first
    assert ends["one"].error == "one atom alone is refused here"
    assert ends["unreadable"].error == "record 7 is damaged"
    for name in ("bond", "water"):
        np.testing.assert_array_equal(ends[name].atoms.positions, whole[name].atoms.positions)


def test_information_is_kept_and_every_step_on_request(tmp_path):
    atoms = water()
    atoms.info = {"charge": 0, "note": "kept", "vector": np.arange(3)}
    relaxer = BatchedRelaxer(Analytic(), fmax=1e-9, steps=3, trajectories=tmp_path)
    (end,) = relaxer.run([("w", atoms)])
    assert end.atoms.info is not atoms.info
    assert end.atoms.info["note"] == "kept"
    frames = Trajectory(tmp_path / "w.traj")
    assert len(frames) == 4
    np.testing.assert_allclose(frames[0].positions, atoms.positions)
    np.testing.assert_allclose(frames[3].positions, end.atoms.positions)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"optimizer": "newton"}, "newton"),
        ({"fmax": 0}, "fmax must be above 0"),
        ({"steps": -1}, "steps must be 0 or more"),
        ({"batch_size": 0}, "batch_size 1 or more"),
        ({"maxstep": -0.1}, "maxstep"),
    ],
)
def test_settings_without_meaning(setting, message):
    with pytest.raises(ConfigError, match=message):
        BatchedRelaxer(Analytic(), **setting)


def model_structures() -> dict[str, Atoms]:
    """Periodic, molecular and mixed structures for a model with random weights."""
    fixed = slab()
    fixed.set_constraint(FixAtoms(np.flatnonzero(fixed.get_tags() == 0)))
    return {"fixed": fixed, "slab": slab("Pd", seed=1), "water": water(), "wire": wire()}


def test_a_checkpoint_s_relaxations_are_those_one_at_a_time(unit):
    structures = model_structures()
    relaxer = BatchedRelaxer(BatchEvaluator(unit), fmax=1e-6, steps=5, batch_size=3)
    ends = {e.name: e for e in relaxer.run(structures.items())}
    for name, atoms in structures.items():
        start = atoms.positions.copy()
        atoms.calc = FAIRChemCalculator(unit, task_name="oc20")
        optimizer = LBFGS(atoms, logfile=None)
        optimizer.run(fmax=1e-6, steps=5)
        assert np.abs(atoms.positions - start).max() > 100 * TOL[torch.float32]
        np.testing.assert_allclose(
            ends[name].atoms.positions, atoms.positions, atol=TOL[torch.float32]
        )
        assert ends[name].energy_last == pytest.approx(
            atoms.get_potential_energy(), abs=TOL[torch.float32]
        )
        assert (ends[name].atoms.pbc == atoms.pbc).all()
    held = structures["fixed"].get_tags() == 0
    np.testing.assert_array_equal(ends["fixed"].atoms.positions[held], slab().positions[held])


def test_conservative_forces_relax_too(tmp_path):
    unit = load_unit(write_checkpoint(tmp_path / "inference_ckpt.pt", conservative=True))
    structures = {"slab": slab(), "water": water()}
    relaxer = BatchedRelaxer(BatchEvaluator(unit), fmax=1e-6, steps=2)
    for end in relaxer.run(structures.items()):
        atoms = structures[end.name]
        atoms.calc = FAIRChemCalculator(unit, task_name="oc20")
        LBFGS(atoms, logfile=None).run(fmax=1e-6, steps=2)
        np.testing.assert_allclose(end.atoms.positions, atoms.positions, atol=TOL[torch.float32])


def test_the_structure_that_breaks_a_batch_is_found(unit):
    evaluate = BatchEvaluator(unit)
    structures = list(model_structures().values())
    for atoms in structures:
        evaluate.attach(atoms)
    structures[1].numbers[0] = 118
    structures[3].positions[0] = np.nan
    errors = evaluate(structures)
    assert [error is None for error in errors] == [True, False, True, False]
    assert errors[1].startswith("atomic numbers [118]")
    assert structures[0].calc.results["forces"].shape == (len(structures[0]), 3)


class SmallMemory:
    """A predict unit on a device that holds few atoms."""

    def __init__(self, unit, limit):
        self.unit, self.limit, self.calls = unit, limit, 0
        self.dataset_to_tasks = unit.dataset_to_tasks

    def predict(self, batch):
        self.calls += 1
        if len(batch.pos) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.unit.predict(batch)


def test_batches_shrink_to_what_fits(unit):
    evaluate = BatchEvaluator(unit)
    structures = [slab(seed=i) for i in range(4)]
    for atoms in structures:
        evaluate.attach(atoms)
    evaluate.unit = SmallMemory(unit, 2 * len(structures[0]))
    assert evaluate(structures) == [None] * 4
    assert evaluate.unit.calls == 3
    assert evaluate(structures) == [None] * 4
    assert evaluate.unit.calls == 5
    evaluate.unit.limit = 1
    assert evaluate(structures) == ["the model failed (CUDA out of memory)"] * 4


def test_a_checkpoint_without_forces_cannot_relax(is2re):
    with pytest.raises(CheckpointError, match=r"predicts energy .IS2RE.; take an S2EF checkpoint"):
        BatchEvaluator(load_unit(is2re))
