"""The position task inside fairchem's own loss and metric code, and its changing weight."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairchem.core.modules.loss import DDPMTLoss, L2NormLoss, MAELoss
from fairchem.core.modules.normalization.normalizer import Normalizer
from fairchem.core.units.mlip_unit.mlip_unit import (
    OutputSpec,
    Task,
    compute_loss,
    compute_metrics,
    get_output_mask,
)

from est_ocp.errors import ConfigError
from est_ocp.training import LinearLossWeight, VectorTask
from tests.models import systems

STD = 0.5
COEFFICIENT = 15.0


def position_task(kind: type = VectorTask) -> Task:
    return kind(
        name="position_delta",
        level="atom",
        property="position_delta",
        out_spec=OutputSpec(dim=[3], dtype="float32"),
        normalizer=Normalizer(mean=0.0, rmsd=STD),
        datasets=["oc20"],
        loss_fn=DDPMTLoss(L2NormLoss(), coefficient=COEFFICIENT),
        metrics=["mae"],
    )


@pytest.fixture
def batch():
    """Two slabs, their lower halves fixed."""
    made = systems.collate([systems.slab(seed=0), systems.slab(seed=1)], torch.float32)
    made.fixed = (made.tags == 0).long()
    made.dataset_name = ["oc20", "oc20"]
    made.position_delta = torch.randn(made.pos.shape, generator=torch.Generator().manual_seed(0))
    return made


def test_loss_and_metric_are_those_of_free_atoms(batch):
    task = position_task()
    predicted = torch.zeros_like(batch.pos).requires_grad_(True)
    predictions = {"position_delta": {"position_delta": predicted}}
    loss = compute_loss([task], predictions, batch)["position_delta"]
    free = (batch.fixed == 0).numpy()
    target = batch.position_delta.numpy()
    expected = COEFFICIENT * np.linalg.norm(target[free] / STD, axis=1).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert predicted.grad[~free].abs().max() == 0
    found = compute_metrics(task, predictions, batch)["mae"]
    assert found.metric == pytest.approx(np.abs(target[free]).mean(), rel=1e-5)


def test_missing_targets_are_left_out(batch):
    task = position_task()
    batch.position_delta[batch.batch == 1] = torch.inf
    mask = get_output_mask(batch, task)["oc20.position_delta"]
    assert torch.equal(mask, batch.batch == 0)


def test_the_stock_task_cannot_hold_vectors(batch):
    """If this passes one day, :class:`VectorTask` is no longer needed."""
    with pytest.raises(RuntimeError, match="size of tensor"):
        get_output_mask(batch, position_task(Task))


def test_the_name_is_a_plain_string_to_everyone_else():
    task = position_task()
    assert task.name == "position_delta"
    assert {"position_delta": 1}[task.name] == 1
    assert "forces" not in {task.name}
    assert "delta" in task.name
    assert "stress" not in task.name


@pytest.mark.parametrize(
    ("length", "done", "weight"),
    [
        ({"max_steps": 10, "max_epochs": None}, 0, 15.0),
        ({"max_steps": 10, "max_epochs": None}, 5, 8.0),
        ({"max_steps": 10, "max_epochs": None}, 12, 1.0),
        ({"max_steps": None, "max_epochs": 2}, 7, 1.0 + 14.0 * 0.5),
    ],
)
def test_the_weight_depends_on_the_step_alone(length, done, weight):
    task = position_task()
    unit = SimpleNamespace(tasks=[task], train_progress=SimpleNamespace(num_steps_completed=done))
    state = SimpleNamespace(train_state=SimpleNamespace(dataloader=range(7), **length))
    callback = LinearLossWeight("position_delta", start=15.0, end=1.0)
    callback.on_train_start(state, unit)
    callback.on_train_step_start(state, unit)
    assert task.loss_fn.coefficient == pytest.approx(weight)
    with pytest.raises(ConfigError, match="no task 'position' "):
        LinearLossWeight("position", 1.0, 0.0).on_train_start(state, unit)


def system_task(kind: type = VectorTask) -> Task:
    return kind(
        name="target",
        level="system",
        property="target",
        out_spec=OutputSpec(dim=[3], dtype="float32"),
        normalizer=Normalizer(mean=0.0, rmsd=STD),
        datasets=["oc20"],
        loss_fn=DDPMTLoss(MAELoss(), coefficient=COEFFICIENT),
        metrics=["mae"],
    )


def test_a_vector_for_each_structure_is_averaged_over_components(batch):
    batch.target = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    batch.target[1, 2] = torch.nan
    predicted = torch.zeros(2, 3, requires_grad=True)
    predictions = {"target": {"target": predicted}}
    loss = compute_loss([system_task()], predictions, batch)["target"]
    labelled = batch.target[torch.isfinite(batch.target)]
    expected = COEFFICIENT * (labelled / STD).abs().mean().item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    metric = compute_metrics(system_task(), predictions, batch, "oc20")["mae"]
    assert metric.metric == pytest.approx(labelled.abs().mean().item(), rel=1e-5)
    with pytest.raises(RuntimeError):
        get_output_mask(batch, system_task(Task))


def test_the_name_survives_copies():
    for task in (position_task(), system_task()):
        for name in (copy.deepcopy(task.name), pickle.loads(pickle.dumps(task.name))):
            assert name == task.name
            assert ("stress" in name) == (task.level == "system")
            assert ("forces" in name) == (task.level == "atom")
