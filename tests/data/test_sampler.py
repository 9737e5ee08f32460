"""Every system is visited, ranks do not overlap, and a resumed run goes on where it stopped."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from est_ocp.data.sampler import (
    EvaluationBatchSampler,
    FixedSizeBatchSampler,
    MaxAtomsBatchSampler,
    group_by_sum,
)
from est_ocp.errors import ConfigError, DataError


class Sizes:
    """A dataset that knows nothing but numbers of atoms."""

    def __init__(self, natoms):
        self.natoms = np.asarray(natoms)

    def __len__(self):
        return len(self.natoms)

    def metadata_hasattr(self, name):
        return name == "natoms"

    def get_metadata(self, name, indices):
        assert isinstance(indices, list)
        return [self.natoms[indices]]


def random_sizes(count: int, seed: int = 0) -> Sizes:
    return Sizes(np.random.default_rng(seed).integers(5, 60, count))


def epoch(make, ranks: int, number: int = 0, start: int = 0) -> list[list[list[int]]]:
    """Return the batches of every rank."""
    samplers = [make(rank) for rank in range(ranks)]
    for sampler in samplers:
        sampler.set_epoch_and_start_iteration(number, start)
    return [list(sampler) for sampler in samplers]


def makers(dataset, ranks, **options):
    return {
        "fixed": lambda rank: FixedSizeBatchSampler(dataset, 4, ranks, rank, seed=3, **options),
        "atoms": lambda rank: MaxAtomsBatchSampler(dataset, 100, ranks, rank, seed=3, **options),
    }


@given(
    count=st.integers(1, 60),
    ranks=st.integers(1, 5),
    kind=st.sampled_from(["fixed", "atoms"]),
    shuffle=st.booleans(),
    number=st.integers(0, 3),
)
def test_every_system_once_but_for_padding(count, ranks, kind, shuffle, number):
    dataset = random_sizes(count)
    make = makers(dataset, ranks, shuffle=shuffle)[kind]
    batches = epoch(make, ranks, number)
    assert {len(own) for own in batches} == {len(make(0))}
    seen = collections.Counter(index for own in batches for batch in own for index in batch)
    assert set(seen) == set(range(count))
    assert all(len(batch) > 0 for own in batches for batch in own)
    if kind == "fixed":
        assert sum(seen.values()) - count < ranks
        assert all(len(batch) <= 4 for own in batches for batch in own)
    if ranks == 1:
        assert set(seen.values()) == {1}


@pytest.mark.parametrize("kind", ["fixed", "atoms"])
def test_two_ranks_are_disjoint(kind):
    make = makers(random_sizes(64), 2)[kind]
    first, second = epoch(make, 2)
    length = len(first) if kind == "fixed" else len(first) - 1
    own = [{i for batch in part[:length] for i in batch} for part in (first, second)]
    assert not own[0] & own[1]


@pytest.mark.parametrize("kind", ["fixed", "atoms"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_resume_at_a_batch(kind, ranks):
    make = makers(random_sizes(50), ranks)[kind]
    whole = epoch(make, ranks, number=2)
    for start in (0, 1, len(whole[0]) - 1, len(whole[0])):
        assert epoch(make, ranks, number=2, start=start) == [own[start:] for own in whole]
    with pytest.raises(ConfigError, match="cannot resume"):
        make(0).set_epoch_and_start_iteration(0, len(whole[0]) + 1)


@pytest.mark.parametrize("kind", ["fixed", "atoms"])
def test_order_by_epoch_and_seed(kind):
    dataset = random_sizes(50)
    make = makers(dataset, 1)[kind]
    assert epoch(make, 1, 0) == epoch(make, 1, 0)
    assert epoch(make, 1, 0) != epoch(make, 1, 1)
    still = makers(dataset, 1, shuffle=False)[kind]
    assert epoch(still, 1, 0) == epoch(still, 1, 1)
    assert [i for batch in epoch(still, 1)[0] for i in batch] == list(range(50))


def test_drop_last():
    dataset = random_sizes(50)
    sampler = FixedSizeBatchSampler(dataset, 4, 3, 0, drop_last=True)
    assert len(sampler) == len(list(sampler)) == 4
    assert {len(batch) for batch in sampler} == {4}
    with pytest.raises(ConfigError, match="drop_last"):
        FixedSizeBatchSampler(dataset, 40, 2, 0, drop_last=True)


def test_balance_evens_out_atoms():
    dataset = random_sizes(400)

    def spread(balance: bool) -> float:
        ranks = [FixedSizeBatchSampler(dataset, 10, 4, rank, balance=balance) for rank in range(4)]
        atoms = np.array([[dataset.natoms[b].sum() for b in sampler] for sampler in ranks])
        return float((atoms.max(0) - atoms.min(0)).mean())

    assert spread(True) < 0.25 * spread(False)


def test_max_atoms_is_kept_and_filled():
    dataset = random_sizes(500)
    sampler = MaxAtomsBatchSampler(dataset, 200)
    atoms = np.array([dataset.natoms[batch].sum() for batch in sampler])
    assert atoms.max() <= 200
    assert np.sort(atoms)[1:].min() > 200 - 60


def test_oversize_systems_are_kept_or_refused(caplog):
    dataset = Sizes([10, 500, 20, 30, 900])
    batches = list(MaxAtomsBatchSampler(dataset, 60, shuffle=False))
    assert batches == [[0], [1], [2, 3], [4]]
    assert "2 systems have more than max_atoms" in caplog.text
    with pytest.raises(DataError, match=r"up to 900.*sample 1\b"):
        MaxAtomsBatchSampler(dataset, 60, shuffle=False, oversize="error")
    with pytest.raises(ConfigError, match="oversize"):
        MaxAtomsBatchSampler(dataset, 60, oversize="drop")


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=40), limit=st.integers(1, 60))
def test_group_by_sum_is_greedy(sizes, limit):
    bounds = group_by_sum(np.array(sizes), limit)
    expected, current = [], []
    for size in sizes:
        if current and sum(current) + size > limit:
            expected.append(current)
            current = []
        current.append(size)
    expected.append(current)
    pairs = itertools.pairwise(bounds)
    assert [sizes[start:stop] for start, stop in pairs] == expected


class Splits(Sizes):
    """Joined splits, as fairchem's ConcatDataset presents them."""

    def __init__(self, lengths):
        super().__init__([5] * sum(lengths))
        self.cumulative_sizes = np.cumsum(lengths).tolist()
        self.dataset_names = [f"oc20.split{i}" for i in range(len(lengths))]


@pytest.mark.parametrize("lengths", [(40, 40, 40, 40), (100, 10, 30, 20), (7,)])
def test_a_part_of_an_evaluation_sees_every_split_in_proportion(lengths):
    sampler = EvaluationBatchSampler(Splits(lengths), batch_size=8, seed=3)
    batches = list(sampler)
    order = [i for batch in batches for i in batch]
    assert sorted(order) == list(range(sum(lengths)))
    ends = np.cumsum(lengths)
    split = np.searchsorted(ends, order, side="right")
    for stop in range(1, len(order)):
        share = np.bincount(split[:stop], minlength=len(lengths))
        expected = stop * np.array(lengths) / sum(lengths)
        assert np.abs(share - expected).max() <= len(lengths) / 2
    if lengths[0] > 10:
        assert order[: lengths[0]] != sorted(order[: lengths[0]])
    sampler.set_epoch(5)
    assert list(sampler) == batches


def test_splits_that_a_part_of_an_evaluation_leaves_out_are_named():
    sampler = EvaluationBatchSampler(Splits((40, 40, 40)), batch_size=2)
    assert sampler.unseen_splits(1) == ["oc20.split2"]
    assert sampler.unseen_splits(2) == []


def test_refusals():
    with pytest.raises(DataError, match="no samples"):
        FixedSizeBatchSampler(Sizes([]), 2)
    with pytest.raises(ConfigError, match="rank 2"):
        FixedSizeBatchSampler(random_sizes(4), 2, num_replicas=2, rank=2)
    with pytest.raises(ConfigError, match="batch_size"):
        FixedSizeBatchSampler(random_sizes(4), 0)

    class NoSizes(Sizes):
        def metadata_hasattr(self, name):
            return False

    with pytest.raises(DataError, match="natoms"):
        MaxAtomsBatchSampler(NoSizes([1, 2]), 10)
    assert len(list(FixedSizeBatchSampler(NoSizes([1, 2]), 1))) == 2
