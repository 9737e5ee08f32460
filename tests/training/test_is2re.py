"""IS2RE through fairchem's own entry point, plain and with the auxiliary task IS2RS."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch

from est_ocp.cli.config import instantiate, resolve
from est_ocp.data import NoisyNodes
from est_ocp.errors import DataError
from est_ocp.evaluation import load_unit
from est_ocp.training import metrics_file, resume_command
from tests.data.test_shards import edit
from tests.training.launch import (
    DEBUG_IS2RE,
    IS2RS,
    fairchem_command,
    run_command,
    train,
)

SPLITS = ["val_id", "val_ood_ads", "val_ood_cat", "val_ood_both"]
PLAIN, AUXILIARY = "tiny_is2re_run", "tiny_is2rs_run"


def rows(run, kind):
    return [r for r in metrics_file.read(run / "metrics.jsonl") if r["kind"] == kind]


def losses(run):
    return {r["step"]: r["loss"] for r in rows(run, "train")}


@pytest.fixture(params=[PLAIN, AUXILIARY])
def run(request):
    return request.getfixturevalue(request.param)


def test_a_training_logs_every_task_and_split(run):
    tasks = ["energy"] + (["position_delta"] if "is2rs" in str(run) else [])
    logged = rows(run, "train")
    assert [r["step"] for r in logged] == list(range(1, 43))
    for row in logged:
        parts = {k.removeprefix("loss_"): v for k, v in row.items() if k.startswith("loss_")}
        assert sorted(parts) == tasks
        assert math.isclose(row["loss"], sum(parts.values()), rel_tol=1e-5)
        assert all(v > 0 for v in parts.values())
    evaluations = rows(run, "eval")
    assert [r["step"] for r in evaluations] == [6, 12, 18, 24, 30, 36, 42]
    last = evaluations[-1]
    assert list(last["splits"]) == [*SPLITS, "mean"]
    for split in SPLITS:
        assert all(last["splits"][split][f"{task}_mae"] > 0 for task in tasks)


def test_the_loss_falls(run):
    energy = [r["loss_energy"] for r in rows(run, "train")]
    assert np.mean(energy[-12:]) < 0.85 * np.mean(energy[:12])


def test_resuming_repeats_losses_dropout_and_noise(run, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    shutil.rmtree(cut / "checkpoints" / "final")
    command = resume_command(cut)
    assert command[2].endswith("step_39/resume.yaml")
    # other loader processes than the first run's none
    train(command[2], *command[3:], "runner.train_dataloader.num_workers=1")
    assert losses(cut) == losses(run)


def test_checkpoints_hold_averaged_weights_that_predict(run, tiny_is2re):
    saved = torch.load(
        run / "checkpoints" / "final" / "inference_ckpt.pt", map_location="cpu", weights_only=False
    )
    averaged = {k.removeprefix("module."): v for k, v in saved.ema_state_dict.items()}
    weights = {k.removeprefix("module."): v for k, v in saved.model_state_dict.items()}
    name = next(k for k in weights if "node_energy" in k and k.endswith("weight"))
    found = next(v for k, v in averaged.items() if k.endswith(name))
    assert not torch.equal(found, weights[name])
    unit = load_unit(run)
    loader = instantiate(resolve_eval(run), "the validation data")
    batch = next(iter(loader))
    out = unit.predict(batch)
    assert torch.isfinite(out["energy"]).all()
    assert out["energy"].shape[0] == len(batch.natoms)
    if "is2rs" in str(run):
        assert out["position_delta"].shape == batch.pos.shape
        # evaluation sees the initial structures
        assert torch.equal(batch.position_delta, batch.pos_relaxed - batch.pos)


def resolve_eval(run):
    return resolve(run / "canonical_config.yaml").runner.eval_dataloader


def test_noise_is_in_training_alone_and_can_be_left_out(tiny_is2re):
    runner = resolve(DEBUG_IS2RE, [*IS2RS, f"data.root={tiny_is2re}"]).runner
    loader = instantiate(runner.train_dataloader, "the training data")
    assert isinstance(loader.dataset.noise, NoisyNodes)
    assert (loader.dataset.noise.probability, loader.dataset.noise.std) == (0.5, 0.3)
    assert "noise" not in runner.eval_dataloader
    quiet = [*IS2RS, f"data.root={tiny_is2re}", "runner.train_dataloader.noise=null"]
    loader = instantiate(resolve(DEBUG_IS2RE, quiet).runner.train_dataloader, "the training data")
    batch = next(iter(loader))
    assert torch.equal(batch.position_delta, batch.pos_relaxed - batch.pos)
    initial = {s.sid[0]: s.pos for s in loader.dataset}
    assert torch.equal(batch.pos, torch.cat([initial[sid] for sid in batch.sid]))


def read_all(cfg):
    for loader in (cfg.runner.train_dataloader, cfg.runner.eval_dataloader):
        for _ in instantiate(loader, "the data"):
            pass


def one_error(tiny_is2re, tmp_path, damage, *overrides):
    """Return the error of reading a damaged copy of the data, in a process of the loader's own."""
    data = tmp_path / "data"
    shutil.copytree(tiny_is2re, data)
    damage(data / "is2re")
    cfg = resolve(DEBUG_IS2RE, [f"data.root={data}", "cluster.num_workers=1", *overrides])
    with pytest.raises(DataError) as caught:
        read_all(cfg)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_missing_split(tiny_is2re, tmp_path):
    text = one_error(tiny_is2re, tmp_path, lambda d: shutil.rmtree(d / "val_ood_cat"))
    assert "there is no folder or file" in text
    assert "is2re/val_ood_cat" in text


def test_a_truncated_file(tiny_is2re, tmp_path):
    def cut(folder):
        path = folder / "train" / "data.lmdb"
        path.write_bytes(path.read_bytes()[:20000])

    text = one_error(tiny_is2re, tmp_path, cut)
    assert "is2re/train/data.lmdb' is truncated" in text


def test_positions_that_are_not_numbers(tiny_is2re, tmp_path):
    def spoil(folder):
        path = folder / "train" / "data.lmdb"
        record = dict(read(path, 5))
        record["pos"] = record["pos"].clone()
        record["pos"][2, 1] = torch.nan
        edit(path, {"5": pickle_of(record)})

    text = one_error(tiny_is2re, tmp_path, spoil)
    assert "record 5 of" in text
    assert "1 values in 'pos' that are not finite" in text
    with pytest.raises(DataError, match=r"^record 5 of .* not finite"):
        train(DEBUG_IS2RE, f"data.root={tmp_path / 'data'}", f"job.run_dir={tmp_path}", "steps=6")


def test_no_relaxed_positions_for_the_auxiliary_task(tiny_is2re, tmp_path):
    def strip(folder):
        path = folder / "val_id" / "data.lmdb"
        record = {k: v for k, v in read(path, 0).items() if k != "pos_relaxed"}
        edit(path, {"0": pickle_of(record)})

    text = one_error(tiny_is2re, tmp_path, strip, *IS2RS)
    assert "has no 'pos_relaxed', which the task position_delta needs" in text


def test_a_test_split_has_no_labels_to_train_on(tiny_is2re, tmp_path):
    text = one_error(
        tiny_is2re,
        tmp_path,
        lambda d: None,
        "data.train.splits.train.src=${data.root}/is2re/test_id",
    )
    assert "has no 'energy', which a task needs" in text


def test_s2ef_files_given_to_is2re(tiny_is2re, tiny_data, tmp_path):
    text = one_error(
        tiny_is2re, tmp_path, lambda d: None, f"data.train.splits.train.src={tiny_data}/train",
        *IS2RS,
    )  # fmt: skip
    assert "has no 'pos_relaxed'" in text


def test_one_file_may_be_named_instead_of_its_folder(tiny_is2re):
    file = f"{tiny_is2re}/is2re/train/data.lmdb"
    cfg = resolve(DEBUG_IS2RE, [f"data.root={tiny_is2re}", f"data.train.splits.train.src={file}"])
    by_file = instantiate(cfg.runner.train_dataloader.dataset, "data")
    cfg = resolve(DEBUG_IS2RE, [f"data.root={tiny_is2re}"])
    by_folder = instantiate(cfg.runner.train_dataloader.dataset, "data")
    assert len(by_file) == len(by_folder)
    assert all(a.sid == b.sid for a, b in zip(by_file, by_folder, strict=True))


def test_records_without_tags_have_tag_zero(tiny_is2re, tmp_path):
    """Worse, as the page on data says, but no crash."""
    data = tmp_path / "data"
    shutil.copytree(tiny_is2re, data)
    path = data / "is2re" / "train" / "data.lmdb"
    bare = {
        str(i): pickle_of({k: v for k, v in read(path, i).items() if k != "tags"})
        for i in range(24)
    }
    edit(path, bare)
    runner = resolve(DEBUG_IS2RE, [f"data.root={data}"]).runner
    batch = next(iter(instantiate(runner.train_dataloader, "the training data")))
    assert batch.tags.abs().max() == 0
    model = instantiate(runner.train_eval_unit.model, "the model").eval()
    without = model(batch)["energy"]["energy"]
    assert torch.isfinite(without).all()
    batch.tags = torch.ones_like(batch.tags)
    assert not torch.allclose(model(batch)["energy"]["energy"], without)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), IS2RS], ids=["plain", "is2rs"])
def test_two_ranks_give_the_losses_of_one(options, tiny_is2re, tmp_path):
    common = (
        f"data.root={tiny_is2re}", f"job.run_dir={tmp_path}", "steps=8", "max_eval_batches=null",
        "model.backbone.alpha_drop=0", "model.backbone.drop_path=0", *options,
    )  # fmt: skip
    run_command(fairchem_command(DEBUG_IS2RE, *common, "batch_size=4", "job.timestamp_id=one"))
    run_command(
        fairchem_command(
            DEBUG_IS2RE, *common, "batch_size=2", "job.timestamp_id=two",
            "job.scheduler.ranks_per_node=2",
        )
    )  # fmt: skip
    # eight steps of six an epoch: the second epoch's noise too
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


def read(path, number):
    """Return a record's fields."""
    from est_ocp.data import OC20LmdbDataset

    data = OC20LmdbDataset({"src": str(path), "task": "is2re"})
    fields = data.fields(number)
    data.close()
    return fields


def pickle_of(fields):
    """Pickle fields as OC20's files do."""
    import pickle

    from torch_geometric.data import Data

    return pickle.dumps(Data(**fields), protocol=-1)
