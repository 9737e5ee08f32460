"""QM9 from the command line: data, trainings and errors."""

from __future__ import annotations

import argparse
import json
import math
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from est_ocp.cli.config import resolve
from est_ocp.cli.main import main as est_ocp
from est_ocp.data import QM9Dataset
from est_ocp.data.qm9_lmdb import read_molecules, read_summary
from est_ocp.errors import ConfigError
from est_ocp.qm9_targets import HARTREE, TARGETS
from est_ocp.training import WallClockBudget, metrics_file, wall_clock_schedule
from tests.training.launch import CONFIGS, train

FOLDER = CONFIGS / "qm9"
ENTRIES = sorted(FOLDER.glob("*.yml"))
NORMALIZERS = yaml.safe_load((resources.files("est_ocp.configs") / "data/qm9.yaml").read_text())
PAGE = (CONFIGS.parent / "docs" / "qm9.md").read_text()

#: Makes the 6-layer model small enough for seconds on one core.
SMALL = (
    "model.backbone.num_layers=1",
    "model.backbone.irreps=8x0e+4x1e+4x2e",
    "model.backbone.feature_channels=16",
    "model.backbone.num_distance_basis=8",
    "model.backbone.message.num_heads=2",
    "model.backbone.message.head=4x0e+2x1e+2x2e",
    "model.backbone.message.hidden=8x0e+4x1e+4x2e",
    "model.backbone.message.radial_channels=[8]",
    "model.backbone.update.rule={kind: design, num_points: 24}",
    "model.backbone.update.hidden_channels=4",
    "model.backbone.update.spherical_expert_channels=8",
    "model.backbone.update.steerable_expert_channels=8",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Written by the command."""
    folder = tmp_path_factory.mktemp("qm9")
    assert est_ocp(["data", "qm9", "--from", "subset", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """A small EST + GA, three steps on alpha."""
    folder = tmp_path_factory.mktemp("runs")
    train(
        FOLDER / "est_ga.yml",
        "data.target=alpha",
        "cluster=local_cpu",
        f"data.root={data}",
        "steps=3",
        "epochs=null",
        "batch_size=8",
        "checkpoint_every=3",
        "log_every=1",
        f"job.run_dir={folder}",
        "job.timestamp_id=alpha",
        *SMALL,
    )
    return folder / "alpha"


def test_est_ga_trains_on_alpha_from_end_to_end(run):
    rows = metrics_file.read(run / metrics_file.FILE_NAME)
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 3
    assert all(map(math.isfinite, losses))


def test_evaluate_gives_the_trainers_error_and_absolute_values(run, data, capsys):
    assert est_ocp(["evaluate", "--checkpoint", str(run)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"alpha, bohr\^3\nsplit .*\nval +200 .*\ntest +200 ", printed)
    rows = metrics_file.read(run / metrics_file.FILE_NAME)
    trained = [row for row in rows if row["kind"] == "eval"][-1]["splits"]["val"]["target_mae"]
    results = json.loads((run / "results" / "predictions" / "metrics.json").read_text())
    assert results["mae"]["val"] == pytest.approx(trained, rel=1e-4)
    saved = np.load(run / "results" / "predictions" / "test.npz")
    test = read_molecules(data / "test" / "data.lmdb")
    np.testing.assert_array_equal(saved["index"], test.index)
    np.testing.assert_allclose(
        saved["label"], test.targets[:, list(TARGETS).index("alpha")], atol=1e-4
    )
    error = np.abs(saved["prediction"] - saved["label"]).mean()
    assert error == pytest.approx(results["mae"]["test"], rel=1e-4)


def test_evaluate_refuses_another_target(run, data, capsys):
    words = ["--config", str(FOLDER / "est_ga.yml"), f"data.root={data}", "data.target=gap"]
    assert est_ocp(["evaluate", "--checkpoint", str(run), *words]) == 2
    assert "predicts alpha, the config's target is gap" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run_of_all(data, tmp_path_factory) -> Path:
    """The smallest EST, three steps on all targets at once."""
    folder = tmp_path_factory.mktemp("runs")
    train(
        FOLDER / "debug.yml", "tasks=qm9_all", f"data.root={data}", "steps=3", "epochs=null",
        "log_every=1", f"job.run_dir={folder}", "job.timestamp_id=all",
    )  # fmt: skip
    return folder / "all"


def test_one_model_learns_all_targets_from_end_to_end(run_of_all, data, capsys):
    rows = metrics_file.read(run_of_all / metrics_file.FILE_NAME)
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 3
    assert all(map(math.isfinite, losses))
    assert est_ocp(["evaluate", "--checkpoint", str(run_of_all)]) == 0
    printed = capsys.readouterr().out
    for name, target in TARGETS.items():
        assert f"\n{name}, {target.table_unit}\n" in f"\n{printed}"
    folder = run_of_all / "results" / "predictions"
    found = json.loads((folder / "metrics.json").read_text())["targets"]
    assert list(found) == list(TARGETS)
    # The trainer's error is the mean of the standardised ones.
    spreads, factors = NORMALIZERS["spreads"], [t.table_factor for t in TARGETS.values()]
    standardised = [
        found[name]["mae"]["val"] / factor / spreads[name]
        for name, factor in zip(TARGETS, factors, strict=True)
    ]
    trained = [row for row in rows if row["kind"] == "eval"][-1]["splits"]["val"]["target_mae"]
    assert np.mean(standardised) == pytest.approx(trained, rel=1e-4)
    saved = np.load(folder / "test.npz")
    test = read_molecules(data / "test" / "data.lmdb")
    assert saved["targets"].tolist() == list(TARGETS)
    np.testing.assert_allclose(saved["label"], test.targets, atol=1e-4)
    errors = np.abs(saved["prediction"] - saved["label"]).mean(0) * factors
    np.testing.assert_allclose(errors, [found[name]["mae"]["test"] for name in found], rtol=1e-4)


def test_all_targets_need_every_mean_and_spread(data):
    config = {"src": str(data / "val"), "target": "all", "means": NORMALIZERS["means"]}
    with pytest.raises(ConfigError, match="spreads of dataset qm9_lmdb lacks mu, alpha"):
        QM9Dataset(config)
    with pytest.raises(ConfigError, match="must be positive"):
        QM9Dataset({**config, "spreads": dict.fromkeys(TARGETS, 0.0)})


@pytest.mark.parametrize("target", ["mu", "gap", "U0"])
def test_the_target_decides_label_head_and_normaliser(target):
    cfg = resolve(FOLDER / "debug.yml", [f"data.target={target}"])
    unit = cfg.runner.train_eval_unit
    (task,) = unit.tasks
    assert task.name == "target"
    assert unit.model.heads.target.target == target
    assert unit.model.heads.target.r2_spread == NORMALIZERS["spreads"]["r2"]
    assert task.normalizer.rmsd == NORMALIZERS["spreads"][target]
    assert task.normalizer.mean == NORMALIZERS["means"][target]
    assert unit.model.backbone.lmax_out == (1 if target == "mu" else 0)
    assert cfg.runner.train_dataloader.dataset.dataset_configs.qm9.target == target
    assert list(cfg.runner.eval_dataloader.dataset.dataset_configs) == ["qm9"]


def test_the_subset_is_like_what_the_normalisers_are_of(data):
    summary = read_summary(data)
    for name, target in TARGETS.items():
        mean, spread = NORMALIZERS["means"][name], summary["std"][name]
        assert NORMALIZERS["spreads"][name] == pytest.approx(spread, rel=0.1)
        assert (mean != 0) == target.is_centred
        if target.is_centred:
            assert mean == pytest.approx(summary["mean"][name], abs=0.1 * spread)
        elif target.has_references:
            assert abs(summary["mean"][name]) < 0.02 * spread
        assert NORMALIZERS["degrees"][name] == (1 if name == "mu" else 0)


@pytest.mark.parametrize("config", ENTRIES, ids=lambda p: p.stem)
def test_every_entry_resolves_and_shares_the_data(config):
    cfg = resolve(config, ["data.target=mu", "data.root=/somewhere"])
    dataset = cfg.runner.train_dataloader.dataset.dataset_configs.qm9
    assert dataset.splits.train.src == "/somewhere/train"
    assert dataset.cutoff == cfg.runner.train_eval_unit.model.backbone.graph.cutoff == 5.0
    head = cfg.runner.train_eval_unit.model.heads.target
    assert head.module == "est_ocp.models.MolecularPropertyHead"
    assert head.divisor == 4.25


def test_a_training_of_a_given_time_follows_the_clock():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = wall_clock_schedule(
        seconds=100, warmup_factor=0.1, warmup_epochs=0.1, lr_min_factor=0.01,
        n_iters_per_epoch=7, optimizer=optimizer, epochs=3,
    )  # fmt: skip
    (clock,) = schedule.lr_lambdas
    expected = {0: 0.1, 5: 0.55, 10: 1.0, 55: 0.505, 100: 0.01, 120: 0.01}
    for seconds, rate in expected.items():
        clock.trained = seconds
        assert clock(0) == pytest.approx(rate)
    clock.trained = 55.0
    again = wall_clock_schedule(100, 0.1, 0.1, 0.01, 7, torch.optim.SGD([weight], lr=1.0))
    again.load_state_dict(schedule.state_dict())
    assert again.lr_lambdas[0].progress == 0.55


def test_a_budget_needs_the_schedule_of_time(tmp_path):
    metadata = argparse.Namespace(log_dir=str(tmp_path / "logs"))
    job = argparse.Namespace(metadata=metadata)
    unit = argparse.Namespace(scheduler=argparse.Namespace(lr_lambdas=[lambda step: 1.0]))
    with pytest.raises(ConfigError, match="wall_clock_schedule"):
        WallClockBudget(job).on_train_start(None, unit)
    with pytest.raises(ConfigError, match="evaluations must be at least 1"):
        WallClockBudget(job, evaluations=0)
    with pytest.raises(ConfigError, match="pause_after must be positive"):
        WallClockBudget(job, pause_after=0)
    with pytest.raises(ConfigError, match="seconds > 0"):
        wall_clock_schedule(0, 0.1, 0.1, 0.01, 7, torch.optim.SGD([torch.zeros(1)], lr=1.0))


def test_the_page_names_commands_files_and_units_that_exist():
    for config in re.findall(r"configs/qm9/(\w+)\.yml", PAGE):
        assert (FOLDER / f"{config}.yml").is_file(), config
    for target in TARGETS.values():
        row = re.search(rf"^\| {target.name} \| ([^|]+) \| ([^|]+) \|", PAGE, re.MULTILINE)
        assert row, target.name
        assert (row[1], row[2]) == (target.unit, target.table_unit)
    assert f"{HARTREE:.6f}" in PAGE
    words = re.findall(r"^est-ocp data qm9(.*)$", PAGE, re.MULTILINE)
    assert len(words) >= 3
    from est_ocp.cli.main import build_parser

    for line in words:
        arguments = build_parser("data").parse_args(["data", "qm9", *line.split("#")[0].split()])
        assert arguments.what == "qm9"
