"""A wrong key is named with the nearest right one, wherever in a config a user can write it."""

from __future__ import annotations

import pytest

from est_ocp.cli.config import resolve
from est_ocp.errors import ConfigError
from tests.training.launch import CONFIGS, DEBUG, train

HEAD = """
hydra: {searchpath: [pkg://est_ocp.configs]}
defaults:
  - train_s2ef
  - override model: est_s2ef_debug
  - override data: demo_s2ef
  - override cluster: local_cpu
  - _self_
"""


def resolved(tmp_path, text: str):
    path = tmp_path / "mine.yml"
    path.write_text(HEAD + text)
    return resolve(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epocs: 2", "'epocs' in the config; did you mean 'epochs'"),
        ("optim: {lrr: 1}", "'lrr' in optim; did you mean 'lr'"),
        ("data: {normaliser: {}}", "'normaliser' in data; did you mean 'normalizer'"),
        ("data: {normalizer: {energy_sd: 1}}", "data.normalizer; did you mean 'energy_std'"),
        ("batching: {trian: {}}", "'trian' in batching; did you mean 'train'"),
        ("batching: {train: {shufle: true}}", "batching.train; did you mean 'shuffle'"),
        ("cluster: {num_worker: 2}", "'num_worker' in cluster; did you mean 'num_workers'"),
        ("tasks: {enrgy: {}}", "'enrgy' in tasks; did you mean 'energy'"),
        ("tasks: {energy: {metric: [mae]}}", "tasks.energy; did you mean 'metrics'"),
        ("tasks: {energy: {loss_fn: {coeficient: 3}}}", "did you mean 'coefficient'"),
        ("model: {heads: {energy: {reduc: sum}}}", "model.heads.energy; did you mean 'reduce'"),
        ("model: {bakbone: {}}", "'bakbone' in model; did you mean 'backbone'"),
        ("runner: {max_epoch: 3}", "'max_epoch' in runner; did you mean 'max_epochs'"),
        ("runner: {callbacks: {guard: {chek_every: 2}}}", "did you mean 'check_every'"),
        ("runner: {train_dataloader: {num_worker: 2}}", "did you mean 'num_workers'"),
        ("job: {run_nme: a}", "Key 'run_nme' not in 'JobConfig'"),
        ("job: {scheduler: {rank_per_node: 2}}", "Key 'rank_per_node' not in"),
    ],
)
def test_in_a_file(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        resolved(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_keys_of_one_s_own_that_something_reads_are_allowed(tmp_path):
    cfg = resolved(
        tmp_path,
        "data: {place: /mine, train: {splits: {train: {src: '${data.place}/train'}}}}\n"
        "width: 4\n"
        "model: {backbone: {channels: '${width}'}}\n"
        "tasks: {mine: {_target_: some.module.Task, name: mine}}\n",
    )
    assert cfg.runner.train_eval_unit.model.backbone.channels == 4
    splits = cfg.runner.train_dataloader.dataset.dataset_configs.oc20.splits
    assert splits.train.src == "/mine/train"


def test_every_way_to_refer_to_a_key_counts(tmp_path):
    """Brackets, blanks, names made of other keys' values, defaults, and relative names."""
    cfg = resolved(
        tmp_path,
        "list: [4, 6]\n"
        "table: {a-b: 7}\n"
        "sizes: {small: 8}\n"
        "which: small\n"
        "optim: {mine: 9}\n"
        "data: {n: {m: 10}, o: '${.n.m}', small: 11}\n"
        "model: {backbone: {mine: ['${list[1]}', '${ table.a-b }', '${sizes.${which}}',"
        " '${oc.select:optim.mine,3}', '${data.o}', '${data.${which}}']}}\n",
    )
    assert cfg.runner.train_eval_unit.model.backbone.mine == [6, 7, 8, 9, 10, 11]


def test_another_resolver_does_not_count(tmp_path):
    with pytest.raises(ConfigError, match="'lrr' in optim; did you mean 'lr'"):
        resolved(tmp_path, "optim: {lrr: 1}\njob: {run_name: '${oc.env:USER,optim.lrr}'}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster=slurm", r"cluster/slurm'? Available options.*local_cpu"),
        ("model=est_s2ef", "Available options.*est_s2ef_8layer"),
        ("guard=skp", "Available options.*skip stop"),
        ("optim.lrr=3", "Could not override 'optim.lrr'"),
        ("+optim.lrr=3", "did you mean 'lr'"),
    ],
)
def test_on_the_command_line(override, message):
    with pytest.raises(ConfigError, match=message):
        resolve(CONFIGS / "s2ef" / "est_8layer.yml", [override])


def test_fairchem_s_own_command_refuses_before_anything_is_written(tmp_path):
    with pytest.raises(Exception, match="unknown key 'lrr' in optim; did you mean 'lr'"):
        train(DEBUG, f"job.run_dir={tmp_path / 'runs'}", "+optim.lrr=3")
    assert not (tmp_path / "runs").exists()
