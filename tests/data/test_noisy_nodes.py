"""Noisy nodes: which atoms move and how far, and that the noise depends on nothing but its key."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from fairchem.core.modules.normalization.normalizer import Normalizer
from fairchem.core.units.mlip_unit.mlip_unit import OutputSpec, Task

from est_ocp.data import (
    FixedSizeBatchSampler,
    NoisyNodes,
    OC20LmdbDataset,
    collate,
    create_dataset,
    get_dataloader,
    release_workers,
    write_oc20_lmdb,
)
from est_ocp.errors import ConfigError, DataError
from est_ocp.training import VectorTask
from tests.data.conftest import make_record

SIZE = 12


def is2re_record(number: int, labelled: bool = True) -> dict:
    """Return an IS2RE record of 30 atoms whose values can be told from its number."""
    record = make_record(number, count=30, labelled=False)
    del record["fid"]
    if labelled:
        way = np.random.default_rng(100 + number).normal(size=(30, 3)).astype(np.float32)
        record |= {"y_init": 1.0, "y_relaxed": -number, "pos_relaxed": record["pos"] + way}
    return record


def task(name: str, kind: type = Task, level: str = "system", dim: int = 1) -> Task:
    return kind(
        name=name,
        level=level,
        property=name,
        out_spec=OutputSpec(dim=[dim], dtype="float32"),
        normalizer=Normalizer(mean=0.0, rmsd=1.0),
        datasets=["oc20"],
    )


def tasks() -> list[Task]:
    return [task("energy"), task("position_delta", VectorTask, "atom", 3)]


@pytest.fixture
def source(tmp_path):
    write_oc20_lmdb(tmp_path, [is2re_record(i) for i in range(SIZE)], task="is2re")
    return create_dataset(
        {
            "oc20": {
                "format": "est_oc20_lmdb",
                "task": "is2re",
                "splits": {"train": {"src": str(tmp_path)}},
            }
        }
    )


def positions(source, epochs, start=0, workers=0, replicas=1, noise=None) -> dict:
    """Return {(epoch, sample): positions} that the loaders of all ranks give."""
    found = {}
    for rank in range(replicas):
        sampler = functools.partial(FixedSizeBatchSampler, batch_size=2)

        def for_rank(dataset, num_replicas, rank, sampler=sampler, mine=rank):
            return sampler(dataset=dataset, num_replicas=replicas, rank=mine)

        loader = get_dataloader(
            source,
            for_rank,
            collate(tasks()),
            num_workers=workers,
            noise=noise or NoisyNodes(probability=1.0, seed=3),
        )
        for epoch in epochs:
            loader.batch_sampler.set_epoch_and_start_iteration(epoch, start)
            for batch in loader:
                for system in range(len(batch.natoms)):
                    atoms = batch.batch == system
                    assert torch.equal(
                        batch.position_delta[atoms], (batch.pos_relaxed - batch.pos)[atoms]
                    )
                    found[epoch, int(batch.sample_id[system])] = batch.pos[atoms]
        release_workers(loader)
    return found


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_free_atoms_move_along_the_way_each_by_its_own_fraction(source):
    system = source[4]
    before = system.pos.clone()
    moved = NoisyNodes(probability=1.0, std=0.0)(system, 4, 0)
    assert torch.equal(system.pos, before)
    free = system.fixed == 0
    assert 5 < free.sum() < 25
    assert torch.equal(moved.pos[~free], before[~free])
    way = (system.pos_relaxed - before)[free]
    fraction = ((moved.pos - before)[free] * way).sum(1) / (way * way).sum(1)
    assert torch.allclose(moved.pos[free], before[free] + fraction[:, None] * way, atol=1e-5)
    assert ((fraction >= 0) & (fraction < 1)).all()
    assert fraction.std() > 0.15
    assert torch.equal(moved.energy, system.energy)
    assert torch.equal(moved.pos_relaxed, system.pos_relaxed)


def test_noise_has_its_standard_deviation_and_probability(source):
    system = source[0]
    system.pos_relaxed = system.pos.clone()
    free = system.fixed == 0
    noise = NoisyNodes(probability=0.5, std=0.3)
    moves = [(noise(system, i, 0).pos - system.pos)[free] for i in range(400)]
    moved = [m for m in moves if m.abs().max() > 0]
    # 400 fair draws have a standard deviation of 10
    assert 160 < len(moved) < 240
    assert torch.cat(moved).std().item() == pytest.approx(0.3, rel=0.03)
    assert torch.cat(moved).mean().abs() < 0.02
    still = NoisyNodes(probability=0.0)(system, 0, 0)
    assert torch.equal(still.pos, system.pos)


def test_noise_is_the_same_whoever_reads_and_differs_by_epoch_seed_and_structure(source):
    here = positions(source, epochs=[0, 1])
    assert len(here) == 2 * SIZE
    # persistent workers are forked once, before the second epoch begins
    assert same(here, positions(source, epochs=[0, 1], workers=2))
    assert same(here, positions(source, epochs=[0, 1], replicas=2))
    assert same(here, positions(source, epochs=[0, 1], replicas=3, workers=1))
    for sample in range(SIZE):
        assert not torch.equal(here[0, sample], here[1, sample])
    other = positions(source, epochs=[0], noise=NoisyNodes(probability=1.0, seed=4))
    assert not any(torch.equal(here[key], other[key]) for key in other)
    moves = [here[0, i] - source[i].pos for i in range(SIZE)]
    assert len({m[source[i].fixed == 0][0, 0].item() for i, m in enumerate(moves)}) == SIZE


def test_noise_is_the_same_after_a_resume_inside_an_epoch(source):
    whole = positions(source, epochs=[1])
    rest = positions(source, epochs=[1], start=2, workers=1)
    assert len(rest) == SIZE - 4
    assert all(torch.equal(rest[key], whole[key]) for key in rest)


def test_evaluation_starts_from_the_initial_structures(source):
    sampler = functools.partial(FixedSizeBatchSampler, batch_size=SIZE, shuffle=False)
    (batch,) = get_dataloader(source, sampler, collate(tasks()))
    assert torch.equal(batch.pos, torch.cat([source[i].pos for i in range(SIZE)]))
    assert torch.equal(batch.position_delta, batch.pos_relaxed - batch.pos)


def test_records_without_relaxed_positions(tmp_path, source):
    write_oc20_lmdb(tmp_path / "test", [is2re_record(1, labelled=False)], task="is2re")
    system = OC20LmdbDataset({"src": str(tmp_path / "test"), "task": "is2re"})[0]
    with pytest.raises(DataError, match=r"sample 1001 has no 'pos_relaxed', which noisy nodes"):
        NoisyNodes()(system, 0, 0)
    with pytest.raises(DataError, match=r"sample 1001 .* no 'pos_relaxed', which the task"):
        collate([task("position_delta", VectorTask, "atom", 3)])([system])
    system.dataset_name = "oc20.test"
    labelled = source[0]
    batch = collate(tasks(), allow_missing_targets=True)([labelled, system])
    assert batch.position_delta.shape == batch.pos.shape
    assert torch.isfinite(batch.position_delta[:30]).all()
    assert torch.isinf(batch.position_delta[30:]).all()
    assert "pos_relaxed" not in batch
    assert "pos_relaxed" in labelled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 1.5}, "probability must lie in 0..1"),
        ({"std": -0.1}, "std must not be negative"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        NoisyNodes(**options)
