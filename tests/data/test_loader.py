"""From LMDB files to batches, through fairchem's collater and forked or spawned workers."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os

import pytest
import torch
from fairchem.core.modules.loss import DDPMTLoss, L2NormLoss, MAELoss
from fairchem.core.modules.normalization.normalizer import Normalizer
from fairchem.core.units.mlip_unit.mlip_unit import OutputSpec, Task, compute_loss

from est_ocp.data import (
    FixedSizeBatchSampler,
    MaxAtomsBatchSampler,
    OC20LmdbDataset,
    collate,
    create_dataset,
    drop_repeats,
    get_dataloader,
    release_workers,
    write_oc20_lmdb,
)
from est_ocp.errors import ConfigError, DataError
from tests.data.conftest import make_record


def task(name: str, level: str = "system", dim: int = 1, **options) -> Task:
    return Task(
        name=name,
        level=level,
        property=name,
        out_spec=OutputSpec(dim=[dim], dtype="float32"),
        normalizer=Normalizer(mean=0.0, rmsd=1.0),
        datasets=["oc20"],
        **options,
    )


def tasks() -> list[Task]:
    return [task("energy"), task("forces", "atom", 3)]


@pytest.fixture
def records():
    return [make_record(i) for i in range(11)]


@pytest.fixture
def split(tmp_path, records):
    write_oc20_lmdb(tmp_path / "val", records, shards=2)
    return create_dataset(
        {"oc20": {"format": "est_oc20_lmdb", "splits": {"val": {"src": str(tmp_path / "val")}}}}
    )


def check(batch, records) -> list[int]:
    """Compare a batch with the records that it came from; return their numbers."""
    ids = batch.sample_id.tolist()
    chosen = [records[i] for i in ids]
    assert batch.natoms.tolist() == [len(r["pos"]) for r in chosen]
    assert torch.equal(batch.pos, torch.cat([torch.tensor(r["pos"]) for r in chosen]))
    assert torch.equal(batch.forces, torch.cat([torch.tensor(r["forces"]) for r in chosen]))
    assert batch.energy.tolist() == [r["energy"] for r in chosen]
    assert batch.sid == [f"{r['sid']}_{r['fid']}" for r in chosen]
    assert batch.dataset == ["oc20"] * len(ids)
    assert batch.dataset_name == ["oc20.val"] * len(ids)
    return ids


@pytest.mark.parametrize(
    ("workers", "context"),
    [(0, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)],
)
def test_batches_equal_records(split, records, workers, context):
    split.datasets[0].dataset[0]  # open a file, as a parent may have before it forks
    loader = get_dataloader(
        split,
        functools.partial(FixedSizeBatchSampler, batch_size=4, shuffle=False),
        collate(tasks()),
        num_workers=workers,
        multiprocessing_context=context,
    )
    for _ in range(2):
        seen = [i for batch in loader for i in check(batch, records)]
        assert sorted(seen) == list(range(11))
    assert loader.persistent_workers == (workers > 0)


def test_max_atoms_and_resume_through_the_loader(split, records):
    loader = get_dataloader(
        split, functools.partial(MaxAtomsBatchSampler, max_atoms=14), collate(tasks())
    )
    whole = [check(batch, records) for batch in loader]
    assert len(loader) == len(whole)
    loader.batch_sampler.set_epoch_and_start_iteration(0, 2)
    assert [check(batch, records) for batch in loader] == whole[2:]


def test_no_sample_is_lost_among_splits(tmp_path):
    """Ratios that round to just below one would lose a sample."""
    splits = {}
    for number, count in enumerate((1, 3, 7, 11)):
        folder = tmp_path / str(number)
        write_oc20_lmdb(folder, [make_record(i) for i in range(count)])
        splits[f"s{number}"] = {"src": str(folder)}
    config = {"oc20": {"format": "est_ocp.data.OC20LmdbDataset", "splits": splits}}
    assert len(create_dataset(config)) == 22


def test_errors_keep_their_kind(tmp_path):
    entry = {"format": "est_oc20_lmdb", "splits": {"val": {"src": str(tmp_path / "absent")}}}
    with pytest.raises(DataError, match="absent"):
        create_dataset({"oc20": entry})
    with pytest.raises(ConfigError, match="max_num_elements"):
        create_dataset({"oc20": entry | {"max_num_element": 3}})


def test_auxiliary_task_gets_zeros_and_samples_stay_as_they_are(split):
    every = [*tasks(), task("expert_balance"), task("atom_balance", "atom", 2)]
    samples = [split[i] for i in range(3)]
    batch = collate(every, auxiliary=("expert_balance", "atom_balance"))(samples)
    assert batch.expert_balance.tolist() == [0.0] * 3
    assert batch.atom_balance.shape == (batch.pos.shape[0], 2)
    assert all("expert_balance" not in sample for sample in samples)
    assert all(sample.dataset == "oc20" for sample in samples)
    assert torch.equal(batch.energy, collate(tasks())(samples).energy)
    assert [t.name for t in every[:2]] == ["energy", "forces"]


def test_losses_accept_the_batch(split):
    every = [*tasks(), task("expert_balance")]
    for entry in every:
        entry.loss_fn = DDPMTLoss(L2NormLoss() if entry.level == "atom" else MAELoss())
    batch = collate(every)([split[i] for i in range(4)])
    predictions = {
        "energy": {"energy": torch.zeros(4, 1, requires_grad=True)},
        "forces": {"forces": torch.zeros(batch.pos.shape[0], 3, requires_grad=True)},
        "expert_balance": {"expert_balance": torch.full((4, 1), 0.5, requires_grad=True)},
    }
    losses = compute_loss(every, predictions, batch)
    assert losses["energy"].item() == pytest.approx(batch.energy.abs().mean().item())
    assert losses["expert_balance"].item() == pytest.approx(0.5)


def test_missing_labels(tmp_path):
    write_oc20_lmdb(tmp_path, [make_record(i, labelled=False) for i in range(3)])
    dataset = OC20LmdbDataset({"src": str(tmp_path)})
    samples = [dataset[i] for i in range(3)]
    with pytest.raises(DataError, match=r"1000_0.*'energy'.*allow_missing_targets"):
        collate(tasks())(samples)
    batch = collate(tasks(), allow_missing_targets=True)(samples)
    assert torch.isinf(batch.energy).all()
    assert torch.isinf(batch.forces).all()
    assert batch.forces.shape == batch.pos.shape


def test_collate_errors(tmp_path):
    write_oc20_lmdb(tmp_path, [make_record(0)])
    sample = OC20LmdbDataset({"src": str(tmp_path), "dataset_name": "other"})[0]
    with pytest.raises(DataError, match=r"'other'.*oc20"):
        collate(tasks())([sample])
    with pytest.raises(ConfigError, match="at least one task"):
        collate([])


def test_drop_repeats():
    ids = torch.tensor([4, 2, 4, 0, 2, 7])
    assert drop_repeats(ids).tolist() == [0, 1, 3, 5]
    assert drop_repeats(torch.tensor([], dtype=torch.long)).tolist() == []


def test_released_workers_end_at_once_and_come_back(split):
    loader = get_dataloader(
        split, functools.partial(FixedSizeBatchSampler, batch_size=4), collate(tasks()), 2
    )
    others = set(multiprocessing.active_children())
    for _ in range(2):
        assert sum(len(batch.natoms) for batch in loader) == 11
        workers = set(multiprocessing.active_children()) - others
        assert len(workers) == 2
        release_workers(loader)
        assert not any(worker.is_alive() for worker in workers)
    release_workers(loader)


class Finalised:
    """Says so in a file when it is collected; a cycle, so that only the collector finds it."""

    def __init__(self, file):
        self.file = file
        self.myself = self

    def __del__(self):
        self.file.write_text(str(os.getpid()))


def test_workers_leave_the_garbage_of_their_parent_alone(split, tmp_path):
    """CUDA objects among it would abort them."""
    ended = tmp_path / "ended"
    made = collate(tasks())

    def collect_and_collate(systems):
        gc.collect()
        return made(systems)

    gc.disable()
    try:
        Finalised(ended)
        loader = get_dataloader(
            split, functools.partial(FixedSizeBatchSampler, batch_size=4), collect_and_collate, 1
        )
        assert sum(len(batch.natoms) for batch in loader) == 11
        release_workers(loader)
        assert not ended.exists()
    finally:
        gc.enable()
    gc.collect()
    assert ended.read_text() == str(os.getpid())
