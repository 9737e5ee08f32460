"""Elements that training has not met are predicted with a warning."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from ase.build import molecule
from fairchem.core import FAIRChemCalculator
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from est_ocp.errors import DataError
from est_ocp.models.trained_elements import TrainedElements
from est_ocp.relaxation import load_calculator
from est_ocp.training.averaging import LeanAverage
from tests.models.small import model
from tests.models.systems import collate, slab, water
from tests.relaxation.checkpoints import write_checkpoint


def met(module: torch.nn.Module) -> list[int]:
    """Atomic numbers that a model remembers."""
    return module.trained_elements.met.nonzero().flatten().tolist()


def test_batches_of_training_are_remembered_and_no_others():
    made = model().train()
    assert met(made) == []
    made.eval()(collate([slab()]))
    assert met(made) == []
    made.train()(collate([water(), molecule("CH4")]))
    assert met(made) == [1, 6, 8]
    made(collate([molecule("NH3")]))
    assert met(made) == [1, 6, 7, 8]
    assert met(copy.deepcopy(made)) == [1, 6, 7, 8]


def test_an_element_beyond_the_table_is_still_refused_by_name():
    made = model(max_num_elements=20).train()
    with pytest.raises(DataError, match="29"):
        made(collate([slab()]))
    assert met(made) == []


def test_an_unmet_element_is_told_once_or_always():
    elements = TrainedElements(20)
    assert elements.warning([1, 8]) is None  # nothing is known of a model without training
    elements.record(torch.tensor([1, 8, 1]))
    text = elements.warning([10, 1, 7])
    assert text.startswith("this model met no N, Ne in training")
    assert "leave them out" in text
    assert elements.warning([10, 1, 7]) == elements.first_warning([10, 1, 7]) == text
    assert elements.first_warning([10, 7, 8]) is None
    elements.record(torch.tensor([2]))
    assert elements.first_warning([2, 7]).startswith("this model met no N in training")


@pytest.mark.parametrize("lean", [True, False])
def test_averaged_weights_remember_too(lean):
    made = model().train()
    average = AveragedModel(made, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    update = LeanAverage(average) if lean else average.update_parameters
    for atoms in (water(), molecule("CH4"), molecule("NH3")):
        made(collate([atoms]))
        update(made)
    assert met(average.module) == met(made) == [1, 6, 7, 8]
    assert average.module.trained_elements.met.dtype == torch.uint8


@pytest.mark.parametrize("stock", [True, False])
def test_the_calculator_warns(stock, tmp_path: Path):
    calculator = load_calculator(write_checkpoint(tmp_path / "inference_ckpt.pt", met=(1, 8)))
    if stock:
        calculator = FAIRChemCalculator(calculator.predictor, "oc20")
    known = water()
    known.calc = calculator
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known.get_potential_energy()
    strange = molecule("NH3")
    strange.calc = calculator
    with pytest.warns(UserWarning, match="met no N in training"):
        strange.get_potential_energy()


def test_checkpoints_of_before_load_and_know_nothing():
    made = model().train()
    made(collate([water()]))
    older = {k: v for k, v in made.state_dict().items() if "trained_elements" not in k}
    made.load_state_dict(older)
    assert met(made) == []
    assert made.trained_elements.warning([7]) is None
