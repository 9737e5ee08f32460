"""The average of the weights: the same as PyTorch's, without waiting for the device."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_avg_fn

from est_ocp.training.averaging import LeanAverage, lean_average
from tests.models.no_host_sync import NoHostSync


def small_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2).double())
    model[0].weight.requires_grad_(False)
    return model


def averaged(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))


def change(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(10 * torch.rand(tensor.shape, generator=generator))


def assert_equal(first: nn.Module, second: nn.Module) -> None:
    expected = second.state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("done", [0, 3])
def test_equals_pytorchs_from_the_start_and_after_a_resume(done: int):
    model = small_model()
    theirs = averaged(model)
    for step in range(done):
        change(model, step)
        theirs.update_parameters(model)
    ours = deepcopy(theirs)
    with lean_average(SimpleNamespace(ema_model=ours)):
        assert isinstance(ours.update_parameters, LeanAverage)
        for step in range(done, done + 4):
            change(model, step)
            theirs.update_parameters(model)
            ours.update_parameters(model)
            assert_equal(ours, theirs)
    assert "update_parameters" not in vars(ours)


def test_replaced_tensors_are_noticed():
    model = small_model()
    ours, theirs = averaged(model), averaged(model)
    lean = LeanAverage(ours)
    for step in range(4):
        if step == 2:
            model[2].weight = nn.Parameter(torch.zeros(2, 4, dtype=torch.float64))
            model[1].running_mean = torch.zeros(4)
            ours.module[0].bias = nn.Parameter(ours.module[0].bias.detach().clone())
        change(model, step)
        lean(model)
        theirs.update_parameters(model)
        assert_equal(ours, theirs)


def test_only_the_first_step_waits_for_the_device():
    model = small_model()
    lean = LeanAverage(averaged(model))
    with pytest.raises(AssertionError), NoHostSync():
        lean(model)
    lean(model)
    with NoHostSync():
        lean(model)


@pytest.mark.parametrize(
    "average",
    [
        None,
        AveragedModel(small_model()),
        AveragedModel(small_model(), avg_fn=get_swa_avg_fn()),
        AveragedModel(small_model(), multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
    ],
    ids=["none", "mean", "one by one", "buffers"],
)
def test_other_averages_are_left_alone(average: AveragedModel | None):
    with lean_average(SimpleNamespace(ema_model=average)):
        assert average is None or "update_parameters" not in vars(average)
