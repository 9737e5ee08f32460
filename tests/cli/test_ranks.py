"""Numbers of processes of configs for machines other than this one."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from est_ocp.cli import ranks
from est_ocp.cli.ranks import fit_ranks
from est_ocp.errors import ConfigError

KEY = "job.scheduler.ranks_per_node"


def config(device: str, count: int):
    return OmegaConf.create(
        {"job": {"device_type": device, "scheduler": {"ranks_per_node": count}}}
    )


@pytest.fixture
def gpus(monkeypatch):
    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize(("wanted", "found"), [(8, 2), (2, 2), (1, 1)])
def test_a_training_s_ranks_are_lowered_to_the_gpus_here(gpus, wanted, found):
    gpus(2)
    made = config("CUDA", wanted)
    fit_ranks(made, ["data.root=/oc20"])
    assert made.job.scheduler.ranks_per_node == found


def test_ranks_that_an_override_names_are_taken_or_refused(gpus):
    gpus(2)
    with pytest.raises(ConfigError, match=f"3 ranks need a GPU each.*{KEY}=2"):
        fit_ranks(config("CUDA", 3), [f"{KEY}=3"])
    made = config("CPU", 500)
    fit_ranks(made, [f"{KEY}=500"])
    assert made.job.scheduler.ranks_per_node == 500


def test_a_config_for_gpus_without_one_is_a_clear_error(gpus):
    gpus(0)
    with pytest.raises(ConfigError, match="add cluster=local_cpu"):
        fit_ranks(config("CUDA", 1), [])


def test_ranks_on_a_processor_are_lowered_to_its_cores(monkeypatch):
    monkeypatch.setattr(ranks, "_cores", lambda: 3)
    made = config("CPU", 8)
    fit_ranks(made, [])
    assert made.job.scheduler.ranks_per_node == 3
