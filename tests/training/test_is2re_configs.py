"""The shipped IS2RE configs resolve, with Equiformer's settings and the overrides of the docs."""

from __future__ import annotations

import pytest

from est_ocp.cli.config import instantiate, resolve
from est_ocp.errors import ConfigError
from tests.training.launch import CONFIGS, DEBUG_IS2RE, IS2RS

FOLDER = CONFIGS / "is2re"
TRAINING = sorted(p for p in FOLDER.glob("*.yml") if p.name != "predict.yml")
LARGE = [p for p in TRAINING if p.stem != "debug"]
MAIN = FOLDER / "est_6layer.yml"
SPLITS = ["val_id", "val_ood_ads", "val_ood_cat", "val_ood_both"]


@pytest.mark.parametrize("config", TRAINING, ids=lambda p: p.stem)
def test_every_training_config_resolves(config):
    cfg = resolve(config, ["data.root=/somewhere"])
    data = cfg.runner.eval_dataloader.dataset.dataset_configs.oc20
    assert data.task == "is2re"
    assert list(data.splits) == SPLITS
    assert all(s.src.startswith("/somewhere/is2re/") for s in data.splits.values())
    unit = cfg.runner.train_eval_unit
    names = ["energy", "position_delta"] if "is2rs" in config.stem else ["energy"]
    assert [t.name for t in unit.tasks] == sorted(unit.model.heads) == names
    assert unit.tasks[0].loss_fn.coefficient == 1
    assert ("noise" in cfg.runner.train_dataloader) == ("is2rs" in config.stem)
    assert "noise" not in cfg.runner.eval_dataloader


@pytest.mark.parametrize("config", LARGE, ids=lambda p: p.stem)
def test_published_settings_of_equiformer(config):
    cfg = resolve(config)
    unit = cfg.runner.train_eval_unit
    assert unit.optimizer_fn._target_ == "torch.optim.AdamW"
    assert unit.optimizer_fn.lr == (5e-4 if "is2rs" in config.stem else 2e-4)
    assert unit.optimizer_fn.weight_decay == 1e-3
    schedule = unit.cosine_lr_scheduler_fn
    assert (schedule.warmup_factor, schedule.warmup_epochs) == (0.2, 2)
    assert (schedule.lr_min_factor, schedule.epochs, schedule.steps) == (0.01, 20, None)
    assert cfg.runner.max_epochs == 20
    energy = unit.tasks[0].normalizer
    assert energy.mean == pytest.approx(-1.5259139538)
    assert energy.rmsd == pytest.approx(2.2793650627)
    assert unit.model.backbone.num_layers == 6
    assert unit.model.backbone.graph.cutoff == 5.0


@pytest.mark.parametrize("config", LARGE, ids=lambda p: p.stem)
@pytest.mark.parametrize("cluster", ["local_gpu", "slurm_a100"])
def test_eight_gpus_take_thirty_two_structures_a_step(config, cluster):
    cfg = resolve(config, [f"cluster={cluster}"])
    scheduler = cfg.job.scheduler
    assert scheduler.mode == ("slurm" if cluster == "slurm_a100" else "local")
    ranks = scheduler.num_nodes * scheduler.ranks_per_node
    assert (scheduler.num_nodes, ranks) == (1, 8)
    assert ranks * cfg.runner.train_dataloader.batch_sampler_fn.batch_size == 32


def test_auxiliary_task_and_its_noise():
    cfg = resolve(FOLDER / "est_6layer_is2rs.yml")
    task = cfg.runner.train_eval_unit.tasks[1]
    assert task._target_ == "est_ocp.training.VectorTask"
    assert task.normalizer.rmsd == pytest.approx(0.8771552)
    assert task.train_on_free_atoms
    assert task.eval_on_free_atoms
    weight = cfg.runner.callbacks.position_weight
    assert (weight.task, weight.start, weight.end) == ("position_delta", 15, 1.0)
    assert task.loss_fn.coefficient == 15
    noise = cfg.runner.train_dataloader.noise
    assert (noise.probability, noise.std, noise.seed) == (0.5, 0.3, 0)
    assert cfg.runner.train_eval_unit.model.backbone.lmax_out == 1
    plain = resolve(MAIN).runner
    assert "position_weight" not in plain.callbacks
    assert plain.train_eval_unit.model.backbone.lmax_out == 0


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=demo_is2re", "optim=demo", "cluster=local_cpu"],
        list(IS2RS),
        ["job.scheduler.ranks_per_node=1", "batch_size=32"],
        ["batching=max_atoms", "logger=wandb", "optim.bf16=true", "model=est_is2re_debug"],
        ["~runner.callbacks.experts"],
    ],
    ids=lambda o: o[0],
)
def test_config_groups(overrides):
    resolve(MAIN, overrides)


def test_prediction_takes_validation_or_test_splits():
    config = FOLDER / "predict.yml"
    common = ["checkpoint=runs/x", "data.root=/oc20"]
    data = resolve(config, common).runner.dataloader.dataset.dataset_configs.oc20
    assert (data.task, list(data.splits)) == ("is2re", SPLITS)
    cfg = resolve(config, [*common, "data.val=${data.test}"]).runner
    assert cfg._target_ == "est_ocp.evaluation.PredictRunner"
    assert cfg.dataloader.batch_sampler_fn.batch_size == 16
    splits = cfg.dataloader.dataset.dataset_configs.oc20.splits
    assert splits.test_ood_both.src == "/oc20/is2re/all/test_ood_both"
    assert list(splits) == [name.replace("val", "test") for name in SPLITS]


def test_vectors_need_a_backbone_that_has_them():
    overrides = ["tasks=is2re_is2rs", "model/heads=energy_position", "model=est_s2ef_debug"]
    cfg = resolve(DEBUG_IS2RE, overrides)
    with pytest.raises(ConfigError, match="cannot read vectors from EquiformerV2EST"):
        instantiate(cfg.runner.train_eval_unit.model, "the model")
