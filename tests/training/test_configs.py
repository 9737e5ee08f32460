"""The shipped configs resolve, fit the models, and take the overrides of the docs."""

from __future__ import annotations

import hydra
import pytest

from est_ocp.cli.config import instantiate, resolve
from est_ocp.errors import ConfigError
from tests.training.launch import CONFIGS

TRAINING = sorted(p for p in CONFIGS.rglob("*.yml") if p.name != "predict.yml" and "s2ef" in str(p))


def model_size(config, *overrides):
    model = instantiate(resolve(config, list(overrides)).runner.train_eval_unit.model, "model")
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("config", TRAINING, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_training_config_resolves(config):
    cfg = resolve(config, ["data.root=/somewhere"])
    assert set(cfg) >= {"job", "runner"}
    splits = cfg.runner.eval_dataloader.dataset.dataset_configs.oc20.splits
    assert list(splits) == ["val_id", "val_ood_ads", "val_ood_cat", "val_ood_both"]
    assert all(s.src.startswith("/somewhere/") for s in splits.values())
    unit = cfg.runner.train_eval_unit
    assert [t.name for t in unit.tasks] == ["energy", "forces"]
    energy = 40 if config.parent.name == "demo" else 4
    assert [t.loss_fn.coefficient for t in unit.tasks] == [energy, 100]
    assert set(unit.model.heads) == {"energy", "forces"}


def test_published_settings_of_equiformer_v2():
    unit = resolve(CONFIGS / "s2ef" / "est_8layer.yml").runner.train_eval_unit
    assert unit.optimizer_fn.lr == 4e-4
    assert unit.optimizer_fn.weight_decay == 1e-3
    assert (unit.ema_decay, unit.clip_grad_norm) == (0.999, 100)
    schedule = unit.cosine_lr_scheduler_fn
    assert (schedule.warmup_factor, schedule.warmup_epochs) == (0.2, 0.01)
    assert schedule.lr_min_factor == 0.01
    energy, forces = (t.normalizer for t in unit.tasks)
    assert energy.mean == pytest.approx(-0.7554450631)
    assert energy.rmsd == forces.rmsd == pytest.approx(2.8873171806)
    assert forces.mean == 0


def test_overrides_for_slurm():
    cfg = resolve(
        CONFIGS / "s2ef" / "est_8layer.yml",
        [
            "cluster=slurm_a100",
            "job.scheduler.num_nodes=2",
            "job.scheduler.slurm.partition=gpu",
            "epochs=3",
            "batch_size=4",
            "optim.bf16=true",
        ],
    )
    scheduler = cfg.job.scheduler
    assert (scheduler.mode, scheduler.num_nodes, scheduler.ranks_per_node) == ("slurm", 2, 8)
    assert scheduler.slurm.partition == "gpu"
    assert cfg.runner.max_epochs == 3
    assert cfg.runner.train_dataloader.batch_sampler_fn.batch_size == 4
    assert cfg.runner.train_eval_unit.bf16


@pytest.mark.parametrize(
    "overrides",
    [
        ["batching=max_atoms"],
        ["data=oc20_s2ef_200k"],
        ["tasks=s2ef_balance"],
        ["model/heads=conservative"],
        ["~runner.callbacks.experts"],
        ["logger=wandb"],
        ["optim=demo", "cluster=local_cpu", "model=eqv2_31m"],
    ],
    ids=lambda o: o[0],
)
def test_config_groups(overrides):
    resolve(CONFIGS / "s2ef" / "est_8layer.yml", overrides)


def test_the_data_root_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("OC20_ROOT", "/mnt/oc20")
    cfg = resolve(CONFIGS / "s2ef" / "est_8layer_2M.yml")
    data = cfg.runner.train_dataloader.dataset.dataset_configs.oc20
    assert data.splits.train.src == "/mnt/oc20/s2ef/2M/train"


def test_sizes_of_the_models():
    config = CONFIGS / "s2ef" / "est_8layer.yml"
    assert model_size(config) == pytest.approx(45e6, rel=0.01)
    # the published 31.06M counts weights of the heads that no output depends on; ours has none
    assert model_size(config, "model=eqv2_31m") == pytest.approx(31.06e6, rel=0.025)


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("+model.backbone.chanels=3", "channels"),
        ("+model.backbone.graph.cutof=3", "cutoff"),
        ("+model.backbone.update.num_spherical_expert=3", "num_spherical_experts"),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest_right_one(override, near):
    cfg = resolve(CONFIGS / "s2ef" / "debug.yml", [override])
    with pytest.raises(ConfigError, match=f"did you mean '{near}'"):
        instantiate(cfg.runner.train_eval_unit.model, "the model")


def test_the_conservative_model_builds_with_one_head():
    cfg = resolve(CONFIGS / "s2ef" / "debug.yml", ["model/heads=conservative"])
    model = hydra.utils.instantiate(cfg.runner.train_eval_unit.model)
    assert list(model.output_heads) == ["energy_and_forces"]
    assert not model.backbone.regress_config.direct_forces


def test_conservative_models_have_an_envelope_and_the_originals_none():
    config = CONFIGS / "s2ef" / "debug.yml"
    for overrides, expected in (
        ([], False),
        (["model/heads=conservative"], True),
        (["model=eqv2_31m", "model/heads=conservative"], True),
        (["model/heads=conservative", "model.backbone.graph.envelope=false"], False),
    ):
        cfg = resolve(config, [*overrides, "model.backbone.num_layers=1"])
        backbone = instantiate(cfg.runner.train_eval_unit.model, "the model").backbone
        assert backbone.graph_settings.envelope == expected
        assert (backbone.envelope is not None) == expected


def test_a_config_that_does_not_resolve_is_one_error(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        resolve(tmp_path / "nothing.yml")
    with pytest.raises(ConfigError, match="no_such_model"):
        resolve(CONFIGS / "s2ef" / "debug.yml", ["model=no_such_model"])
    with pytest.raises(ConfigError, match="stesp"):
        resolve(CONFIGS / "s2ef" / "debug.yml", ["stesp=3"])
