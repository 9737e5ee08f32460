"""A checkpoint in ASE: the trainer's numbers, periodicity, and errors in one sentence."""

from __future__ import annotations

import logging

import ase
import hydra
import numpy as np
import pytest
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixAtoms
from ase.optimize import LBFGS
from fairchem.core import FAIRChemCalculator

from est_ocp.data.record import to_atomic_data
from est_ocp.errors import ConfigError, DataError
from est_ocp.evaluation.checkpoint import read_checkpoint
from est_ocp.relaxation import CheckpointCalculator, load_calculator
from est_ocp.relaxation.calculator import quiet_start
from tests.models.systems import collate, crystal, single_atom, slab, water, wire
from tests.relaxation.checkpoints import NORMALIZERS, is2re_records
from tests.tolerances import TOL

TOLERANCE = TOL[torch.float32]


@pytest.fixture(scope="module")
def as_trained(s2ef):
    """The trainer's own way: its model, the averaged weights, its normaliser."""
    content = read_checkpoint(s2ef)
    model = hydra.utils.instantiate(content.model_config).eval()
    weights = {
        name.removeprefix("module."): value
        for name, value in content.ema_state_dict.items()
        if name != "n_averaged"
    }
    model.load_state_dict(weights)

    def evaluate(data):
        with torch.no_grad():
            out = model(data)
        return tuple(
            (out[name][name] * NORMALIZERS[name][1] + NORMALIZERS[name][0]).numpy()
            for name in ("energy", "forces")
        )

    return evaluate


@pytest.mark.parametrize("stock", [True, False])
@pytest.mark.parametrize("make", [slab, crystal, water, single_atom])
def test_energies_and_forces_are_the_trainer_s(make, stock, as_trained, unit):
    atoms = make()
    energy, forces = as_trained(collate([atoms], torch.float32))
    calculator = FAIRChemCalculator if stock else CheckpointCalculator
    atoms.calc = calculator(unit, "oc20")
    assert atoms.get_potential_energy() == pytest.approx(float(energy[0]), abs=TOLERANCE)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=TOLERANCE)


def test_a_record_of_an_lmdb_gives_the_same(as_trained, unit):
    record = is2re_records(1)[0]
    data = to_atomic_data(record, task="is2re", index=0, where="record")
    data.batch = torch.zeros(len(record["pos"]), dtype=torch.long)
    energy, forces = as_trained(data)
    atoms = ase.Atoms(
        record["atomic_numbers"], record["pos"], cell=record["cell"], pbc=True, tags=record["tags"]
    )
    atoms.calc = CheckpointCalculator(unit)
    assert atoms.get_potential_energy() == pytest.approx(float(energy[0]), abs=TOLERANCE)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=TOLERANCE)


def test_a_molecule_does_not_become_periodic(unit):
    calculator = CheckpointCalculator(unit)
    free, boxed, periodic = water(), water(), water()
    boxed.cell = periodic.cell = [3.0, 3.0, 3.0]
    periodic.pbc = True
    energies = [calculator.get_potential_energy(a) for a in (free, boxed, periodic)]
    assert energies[0] == pytest.approx(energies[1], abs=TOLERANCE)
    assert abs(energies[0] - energies[2]) > 10 * TOLERANCE


def test_a_wire_needs_a_cell_along_its_axis_alone(unit):
    calculator = CheckpointCalculator(unit)
    whole, partly = wire(), wire()
    partly.cell = [0, whole.cell[1, 1], 0]
    np.testing.assert_allclose(
        calculator.get_forces(partly), calculator.get_forces(whole), atol=TOLERANCE
    )


def test_tags_and_fixed_atoms_reach_the_model(unit):
    atoms = slab()
    atoms.set_constraint(FixAtoms([0, 3]))
    data = CheckpointCalculator(unit).to_data(atoms)
    assert data.tags.tolist() == atoms.get_tags().tolist()
    assert torch.nonzero(data.fixed).flatten().tolist() == [0, 3]


def test_a_relaxation_in_ase_leaves_fixed_atoms(s2ef):
    atoms = slab()
    atoms.set_constraint(FixAtoms(np.flatnonzero(atoms.get_tags() == 0)))
    atoms.calc = load_calculator(s2ef)
    before = atoms.positions.copy()
    LBFGS(atoms, logfile=None).run(fmax=1e-6, steps=3)
    moved = np.abs(atoms.positions - before).max(axis=1)
    assert (moved[atoms.get_tags() == 0] == 0).all()
    assert (moved[atoms.get_tags() != 0] > 0).all()


def test_arrays_among_the_information_do_not_matter(unit):
    atoms = water()
    atoms.info["dipole"] = np.array([0.0, 0.1, 0.2])
    atoms.calc = CheckpointCalculator(unit)
    energy = atoms.get_potential_energy()
    assert atoms.get_potential_energy() == energy
    assert atoms.get_forces().shape == (3, 3)


def test_stress_is_refused_in_a_sentence(unit):
    atoms = slab()
    atoms.calc = CheckpointCalculator(unit)
    with pytest.raises(
        PropertyNotImplementedError, match=r"^this checkpoint predicts energy and forces, not str"
    ):
        atoms.get_stress()


def test_an_energy_model_gives_energies_and_refuses_forces(is2re):
    atoms = slab()
    atoms.calc = load_calculator(is2re)
    assert np.isfinite(atoms.get_potential_energy())
    with pytest.raises(PropertyNotImplementedError, match=r"energy, not forces.* S2EF") as caught:
        atoms.get_forces()
    assert "\n" not in str(caught.value)


def _numbers(atoms):
    atoms.numbers[0] = 118


def _positions(atoms):
    atoms.positions[0, 0] = np.nan


def _no_cell(atoms):
    atoms.cell = np.zeros((3, 3))


def _flat_cell(atoms):
    atoms.cell[2] = atoms.cell[1]


@pytest.mark.parametrize("stock", [True, False])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_numbers, r"atomic numbers \[118\]"),
        (_positions, "positions are not finite"),
        (_no_cell, "cell"),
        (_flat_cell, "its cell has no volume"),
    ],
)
def test_structures_that_cannot_be_calculated(spoil, message, stock, unit):
    atoms = slab()
    spoil(atoms)
    atoms.calc = FAIRChemCalculator(unit) if stock else CheckpointCalculator(unit)
    with pytest.raises(ValueError, match=message) as caught:
        atoms.get_potential_energy()
    assert "\n" not in str(caught.value)
    if spoil is not _no_cell:
        assert isinstance(caught.value, DataError)


def test_an_unknown_dataset_names_those_there_are(unit):
    with pytest.raises(ConfigError, match="no dataset 'omat'; it has oc20"):
        CheckpointCalculator(unit, "omat")


def test_tf32_is_off_unless_wanted(s2ef):
    assert not load_calculator(s2ef).predictor.inference_settings.tf32
    assert load_calculator(s2ef, tf32=True).predictor.inference_settings.tf32


def test_only_the_first_prediction_is_silent(s2ef, caplog):
    atoms = water()
    atoms.calc = load_calculator(s2ef)
    with quiet_start(atoms.calc.predictor):
        logging.warning("of the start")
    atoms.get_potential_energy()
    with quiet_start(atoms.calc.predictor):
        logging.warning("of a prediction")
    assert [record.message for record in caplog.records] == ["of a prediction"]
