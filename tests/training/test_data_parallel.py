"""Two ranks equal one with twice the batch, in float64."""

from __future__ import annotations

import collections
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from est_ocp.data.sampler import FixedSizeBatchSampler
from tests.tolerances import PARALLEL
from tests.training.launch import run_command
from tests.training.parallel_worker import STEPS


@pytest.fixture(scope="module")
def ended(tiny_data, tmp_path_factory):
    """What every rank of every training ended with, by training and rank."""
    out = tmp_path_factory.mktemp("parallel")
    run_command([sys.executable, "-m", "tests.training.parallel_worker", str(tiny_data), str(out)])
    return {file.stem: torch.load(file) for file in out.glob("*.pt")}


def close(found, expected, tolerance=PARALLEL):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value.is_floating_point():
            assert value.dtype in (torch.float64, torch.float32)
            scale = max(value.abs().max().item(), 1e-3)
            error = (found[name] - value).abs().max().item() / scale
            assert error < tolerance, f"{name} differs by {error}"
        else:
            assert torch.equal(found[name], value)


def test_two_ranks_have_the_losses_of_one_with_twice_the_batch(ended):
    one = ended["one-rank0"]["losses"]
    two = np.mean([ended[f"two-rank{rank}"]["losses"] for rank in (0, 1)], axis=0)
    assert len(one) == STEPS
    np.testing.assert_allclose(two, one, rtol=PARALLEL)
    # each rank sees its own part of a batch: structures of other sizes, other losses
    assert ended["two-rank0"]["losses"] != pytest.approx(ended["two-rank1"]["losses"], rel=1e-3)


@pytest.mark.parametrize("weights", ["model", "ema"])
def test_two_ranks_have_the_weights_of_one_with_twice_the_batch(weights, ended):
    expected = ended["one-rank0"][weights]
    assert {v.dtype for v in expected.values() if v.is_floating_point()} >= {torch.float64}
    close(ended["two-rank0"][weights], expected)


def test_both_ranks_hold_the_same_weights_and_normalizers_also_after_a_resume(ended):
    for training in ("two", "resumed"):
        first, second = (ended[f"{training}-rank{rank}"] for rank in (0, 1))
        for part in ("model", "ema"):
            close(first[part], second[part], tolerance=1e-300)
        assert first["normalizers"] == second["normalizers"]
        assert first["normalizers"]["energy"][1] > 0


def test_two_ranks_that_were_resumed_end_with_the_same_losses_and_weights(ended):
    whole, resumed = ended["two-rank1"], ended["resumed-rank1"]
    # from the checkpoint of step 3, in the last batch but one of an epoch
    assert resumed["losses"] == whole["losses"][3:]
    for part in ("model", "ema"):
        close(resumed[part], whole[part], tolerance=1e-300)


@pytest.mark.parametrize("reduction", ["mean", "per_structure"])
def test_mean_losses_of_unequal_numbers_of_atoms_have_the_gradient_of_one_rank(reduction, ended):
    expected = ended["reductions-1-rank0"][reduction]
    for rank in (0, 1):
        torch.testing.assert_close(ended[f"reductions-2-rank{rank}"][reduction], expected)


def test_a_summed_loss_has_half_the_gradient_on_two_ranks(ended):
    expected = ended["reductions-1-rank0"]["sum"] / 2
    torch.testing.assert_close(ended["reductions-2-rank0"]["sum"], expected)


@given(
    count=st.integers(1, 200),
    ranks=st.integers(1, 9),
    batch=st.integers(1, 12),
    start=st.integers(0, 400),
)
def test_every_sample_once_an_epoch_for_any_number_of_ranks_and_a_resume(
    count, ranks, batch, start
):
    """What was done before a resume and after it makes an epoch; padding repeats its start."""
    samplers = [
        FixedSizeBatchSampler(range(count), batch, ranks, rank, seed=5, balance=False)
        for rank in range(ranks)
    ]
    start = min(start, len(samplers[0]))
    seen: collections.Counter[int] = collections.Counter()
    for sampler in samplers:
        sampler.set_epoch(3)
        before = list(sampler)[:start]
        sampler.set_epoch_and_start_iteration(3, start)
        both = [*before, *sampler]
        assert len(both) == len(sampler)
        seen.update(index for chosen in both for index in chosen)
    assert set(seen) == set(range(count))
    assert sum(seen.values()) - count == -(count % (batch * ranks)) % ranks
