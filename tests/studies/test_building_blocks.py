"""The study of building blocks, reduced: its data, its variants, its statistics, its command."""

from __future__ import annotations

import csv
import importlib
import math
import tarfile
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from est_ocp.data import write_qm9
from tests.studies.odd_work import square_of
from tests.tolerances import TOL


@pytest.fixture(scope="module")
def study(parts):
    return parts("building_blocks")


@pytest.fixture(scope="module")
def variants(parts):
    return parts("buildingblocks.variants")


@pytest.fixture(scope="module")
def training(parts):
    return parts("buildingblocks.training")


@pytest.fixture(scope="module")
def statistics(parts):
    return parts("buildingblocks.statistics")


@pytest.fixture(scope="module")
def flat(parts, tmp_path_factory):
    """Training set of the embedded molecules and the file of both splits."""
    molecules = parts("buildingblocks.molecules")
    folder = tmp_path_factory.mktemp("qm9")
    write_qm9(folder, "subset")
    molecules.write_cache(folder, folder / "molecules.pt")
    return molecules.read_cache(str(folder / "molecules.pt"), "cpu")["train"], folder


def protocol_of(training, folder, **changes):
    settings = {
        "steps": 6, "batch_size": 4, "tiny": True, "test_molecules": 16, "rotation_molecules": 8,
    }  # fmt: skip
    return training.Protocol(str(folder / "molecules.pt"), **settings | changes)


def model_of(training, variants, name, folder):
    torch.manual_seed(0)
    return training.build(variants.BY_NAME[name], protocol_of(training, folder))[0].eval()


@torch.no_grad()
def test_the_filling_changes_no_prediction_and_batches_are_the_molecules(flat, training, variants):
    train, folder = flat
    model = model_of(training, variants, "full", folder)
    chosen = torch.tensor([3, 700, 41])
    one_by_one = [
        model(train.tight_batch(chosen[i : i + 1]))["target"]["target"][:1] for i in range(3)
    ]
    atoms, edges = train.padded_size(chosen[None])
    wide = model(train.batch(chosen, atoms + 40, edges + 640))["target"]["target"][:3]
    torch.testing.assert_close(wide, torch.cat(one_by_one), rtol=0, atol=TOL[torch.float32])
    batch = train.batch(chosen, atoms, edges)
    start, count = train.atom_start[700], train.natoms[700]
    own = batch.batch == 1
    assert torch.equal(batch.pos[own], train.pos[start : start + count])
    assert torch.equal(batch.natoms[:3], train.natoms[chosen])
    source, target = batch.graph_edge_index
    assert torch.equal(batch.batch[source], batch.batch[target])
    distance = batch.graph_edge_vec.norm(dim=1)[batch.batch[target] < 3]
    assert len(distance) == train.nedges[chosen].sum()
    assert distance.min() > 0.5
    assert distance.max() <= 5.0 + 1e-4


def test_every_epoch_is_a_new_shuffle_and_a_seed_fixes_it(parts):
    data_order = parts("buildingblocks.molecules").data_order
    order = data_order(10, 3, 7, seed=0)
    assert order.shape == (7, 3)
    for epoch in order[:6].view(2, 9):
        assert len(set(epoch.tolist())) == 9
    assert not torch.equal(order[:3], order[3:6])
    assert torch.equal(order, data_order(10, 3, 7, seed=0))
    assert not torch.equal(order, data_order(10, 3, 7, seed=1))


def test_every_variant_is_another_model(flat, training, variants):
    """Its prediction, or for the balance loss its loss, differs from its reference's."""
    train, folder = flat
    batch = train.tight_batch(torch.arange(3))
    found = {}
    for variant in variants.VARIANTS:
        torch.manual_seed(0)
        model = training.build(variant, protocol_of(training, folder))[0].train()
        torch.manual_seed(1)
        found[variant.name] = model(batch)
    for variant in variants.VARIANTS:
        own, reference = (found[name] for name in (variant.name, variant.reference))
        assert ("expert_balance" in own) == (variant.balance > 0)
        change = (own["target"]["target"] - reference["target"]["target"]).abs().max()
        if variant.balance:
            assert change < TOL[torch.float32]
            assert own["expert_balance"]["expert_balance"].max() > 0
        elif variant.name != variant.reference:
            assert change > 1e-6, variant.name


def test_the_papers_tables_are_complete(variants):
    count = {"experts": 8, "top_k": 3, "balance": 3, "blocks": 6}
    for table, number in count.items():
        assert len([v for v in variants.VARIANTS if v.table == table and v.paper]) == number
    assert variants.of_table("top_k")[0].name == "experts 10"
    labels = [v.label for v in variants.of_table("experts")]
    assert labels[1:] == ["2", "4", "8", "10", "16", "32", "64"]


def test_a_training_starts_again_and_averages_its_weights(flat, training, variants):
    train, folder = flat
    protocol = protocol_of(training, folder)
    trainee = training.Trainee(variants.BY_NAME["full"], 0, train, protocol)
    for _ in range(3):
        trainee.step()
    first = trainee.errors[:3].clone()
    assert int(trainee.counter) == 3
    trainee.restart()
    for _ in range(3):
        trainee.step()
    torch.testing.assert_close(trainee.errors[:3], first, rtol=0, atol=TOL[torch.float32])
    averaged = list(trainee.averaged().parameters())
    moved = [(p - s).norm() for p, s in zip(trainee.parameters, trainee._start, strict=True)]
    behind = [(p - s).norm() for p, s in zip(averaged, trainee._start, strict=True)]
    assert sum(moved) > 10 * sum(behind) > 0


def test_a_short_training_learns(flat, training, variants):
    _, folder = flat
    protocol = protocol_of(
        training, folder, steps=80, batch_size=8, lr=1e-2, ema_decay=0.9, test_molecules=64
    )
    (row,) = training.run_group((variants.BY_NAME["experts 4"], [0], protocol), "cpu")
    (start,) = training.run_group(
        (variants.BY_NAME["experts 4"], [0], replace(protocol, steps=2, lr=0.0)), "cpu"
    )
    assert row["test_mae"] < 0.6 * start["test_mae"]
    assert row["rotation_error"] < 1e-9


def test_seconds_decide_on_the_steps(flat, training, variants):
    _, folder = flat
    protocol = protocol_of(training, folder, steps=50, seconds=1e-3)
    (row,) = training.run_group((variants.BY_NAME["host"], [0], protocol), "cpu")
    assert row["steps"] == 2
    rates = training.rates(protocol, 50)
    assert rates.argmax() == 1
    assert rates.max() <= protocol.lr * (1 + 1e-6)
    assert rates[-1] < 0.02 * protocol.lr


def test_noise_is_noise_and_an_effect_is_one(statistics):
    rng = np.random.default_rng(0)
    names = [f"v{i}" for i in range(20)]
    pairs = [(name, "base") for name in [*names, "worse", "better"]]
    claims = 0
    for _ in range(100):
        order = rng.normal(scale=0.05, size=3)
        noise = {n: rng.normal(scale=0.02, size=3) for n in [*names, "base", "worse", "better"]}
        shift = {"worse": 0.2, "better": -0.2}
        errors = {
            n: {s: math.exp(order[s] + d[s] + shift.get(n, 0.0)) for s in range(3)}
            for n, d in noise.items()
        }
        found = statistics.compare(errors, pairs)
        assert found["worse", "base"].verdict == "higher"
        assert found["better", "base"].verdict == "lower"
        claims += any(found[n, "base"].verdict != "inside the noise" for n in names)
    assert claims <= 15
    single = {name: {0: 1.0 + 0.1 * i} for i, name in enumerate([*names, "base"])}
    found = statistics.compare(single, pairs)
    assert {c.verdict for c in found.values()} == {"inside the noise"}


def test_workers_report_failures_and_deaths_and_end_in_time(parts, tmp_path):
    run_all = parts("buildingblocks.workers").run_all
    results = list(run_all(square_of, [1, 2, 5], ["cpu"], time.time() + 60, tmp_path))
    assert [result for _, result, _ in results] == [1, None, 25]
    assert "two is not squared" in results[1][2]
    began = time.time()
    items = [1, 2, 4, 5, 3]
    found = {
        item: (result, error)
        for item, result, error in run_all(square_of, items, ["cpu"] * 2, began + 15, tmp_path)
    }
    assert time.time() - began < 40
    assert set(found) == {1, 2, 4, 5}
    assert (found[1][0], found[5][0]) == (1, 25)
    assert "two is not squared" in found[2][1]
    assert found[4] == (None, "its process ended with code 7")


def test_the_command_goes_on_and_writes_its_page(study, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    chosen = ["--only", "full", "point norm", "experts 1", "experts 10"]
    arguments = ["--smoke", "--out", str(out), *chosen]
    assert study.main([*arguments, "--seeds", "1"]) == 0
    assert "(one seed)" in (out / "building_blocks.md").read_text()
    capsys.readouterr()
    training = importlib.import_module("buildingblocks.runner")
    run = training.run_group

    def sometimes(item, device):
        if item[0].name == "point norm":
            raise RuntimeError("no luck")
        return run(item, device)

    monkeypatch.setattr(training, "run_group", sometimes)
    archive = tmp_path / "results.tar.gz"
    assert study.main([*arguments, "--seeds", "2", "--pack", str(archive)]) == 1
    captured = capsys.readouterr()
    assert "4 groups of trainings to run, 4 trainings there" in captured.out
    assert "failed: point norm" in captured.err
    with (out / "trainings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["variant"], row["seed"]) for row in rows) == [
        ("experts 1", "0"), ("experts 1", "1"), ("experts 10", "0"), ("experts 10", "1"),
        ("full", "0"), ("full", "1"), ("point norm", "0"),
    ]  # fmt: skip
    page = (out / "building_blocks.md").read_text()
    assert "| 10 |" in page
    assert "*0.0424*" in page
    assert str(tmp_path) not in page
    assert (out / "building_blocks.png").stat().st_size > 10_000
    with tarfile.open(archive) as tar:
        assert {"trainings.csv", "building_blocks.md", "building_blocks.png"} <= set(tar.getnames())
    (out / "building_blocks.md").write_text(page + "\n## Remarks\n\nMine.\n")
    assert study.main(["--report", "--out", str(out)]) == 0
    again = (out / "building_blocks.md").read_text()
    assert again == page + "\n## Remarks\n\nMine.\n"
    with pytest.raises(SystemExit, match="another protocol"):
        study.main([*arguments, "--lr", "0.01"])


def test_no_time_left_is_no_failure(study, tmp_path, capsys):
    arguments = ["--smoke", "--out", str(tmp_path), "--only", "host", "--minutes", "0"]
    assert study.main(arguments) == 0
    assert "1 groups left for the next run" in capsys.readouterr().out
