"""Training through fairchem's own entry point."""

from __future__ import annotations

import math
import shutil

import ase.db
import hydra
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem.core.components.callbacks import TrainCheckpointCallback
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from est_ocp.cli.config import resolve
from est_ocp.errors import CheckpointError, ConfigError, DataError
from est_ocp.evaluation import load_unit
from est_ocp.evaluation.checkpoint import read_checkpoint
from est_ocp.training import cosine_schedule, latest_checkpoint, metrics_file, resume_command
from est_ocp.training.checkpoint import problem_of
from est_ocp.training.safe_checkpoint import SafeCheckpoint
from est_ocp.training.safe_load import read_index
from tests.models import systems
from tests.training.launch import DEBUG, train


def rows(run, kind):
    return [r for r in metrics_file.read(run / "metrics.jsonl") if r["kind"] == kind]


def losses(run):
    return {r["step"]: r["loss"] for r in rows(run, "train")}


def test_a_training_logs_every_step_and_every_split(tiny_run):
    logged = rows(tiny_run, "train")
    assert [r["step"] for r in logged] == [1, 2, 3, 4, 5, 6]
    for row in logged:
        assert math.isclose(row["loss"], row["loss_energy"] + row["loss_forces"], rel_tol=1e-5)
        assert row["grad_norm"] > 0
        assert row["samples_per_second"] > 0
    (last,) = rows(tiny_run, "eval")
    assert set(last["splits"]) == {
        "val_id", "val_ood_ads", "val_ood_cat", "val_ood_both", "mean"
    }  # fmt: skip
    four = [m["forces_mae"] for s, m in last["splits"].items() if s != "mean"]
    assert math.isclose(last["splits"]["mean"]["forces_mae"], np.mean(four), rel_tol=1e-9)


def test_expert_usage_is_a_distribution(tiny_run):
    for row in rows(tiny_run, "experts"):
        for layer, usage in row["usage"].items():
            assert math.isclose(sum(usage), 1.0, abs_tol=1e-5)
            expected = -sum(p * math.log(p) for p in usage) / math.log(len(usage))
            assert math.isclose(row["entropy"][layer], expected, abs_tol=1e-5)


def test_tensorboard_has_the_same_losses(tiny_run):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(tiny_run / "logs"))
    accumulator.Reload()
    written = {e.step: e.value for e in accumulator.Scalars("train/loss")}
    assert written == pytest.approx(losses(tiny_run), rel=1e-6)


def test_the_learning_rate_warms_up_and_falls(tiny_run):
    # 6 steps an epoch of 24 structures in batches of 4: warm-up 0.3 epochs = 1 step
    lr = [r["lr"] for r in rows(tiny_run, "train")]
    assert lr[0] == pytest.approx(0.2 * 3e-3)
    assert lr[1] == max(lr)
    assert lr[2:] == sorted(lr[2:], reverse=True)


def test_resuming_gives_the_losses_of_the_uninterrupted_run(tiny_run, tmp_path):
    cut = tmp_path / "moved" / "cut"
    shutil.copytree(tiny_run, cut)
    shutil.rmtree(cut / "checkpoints" / "final")
    (cut / "checkpoints" / "step_6.partial").mkdir()
    command = resume_command(cut)
    assert command[2].endswith("step_3/resume.yaml")
    train(command[2], *command[3:])
    resumed, whole = losses(cut), losses(tiny_run)
    # dropout is on in this model, so equality needs the random state too
    assert resumed == whole
    assert [r["step"] for r in rows(cut, "eval")] == [6]
    assert not list((cut / "checkpoints").glob("*.partial"))


def test_a_run_of_before_that_noted_no_elements_goes_on_without(tiny_run, tmp_path):
    """Its checkpoints, and those after it, hold what they held."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    shutil.rmtree(run / "checkpoints" / "final")
    step = run / "checkpoints" / "step_3"
    dcp_to_torch_save(step, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=False)
    for part in ("model", "ema"):
        weights = state["unit_state"][part]
        (key,) = [key for key in weights if key.endswith("trained_elements.met")]
        assert weights.pop(key).any()
    for file in (*step.glob("*.distcp"), step / "saved.json"):
        file.unlink()
    dcp.save(state, checkpoint_id=step)
    command = resume_command(run)
    train(command[2], *command[3:])
    assert losses(run) == losses(tiny_run)
    for name in read_index(run / "checkpoints" / "final").state_dict_metadata:
        assert "trained_elements" not in name
    weights, others = (read_checkpoint(folder).ema_state_dict for folder in (run, tiny_run))
    assert others.keys() - weights.keys() == {"module.trained_elements.met"}
    assert load_unit(run).model.module.trained_elements.warning([100]) is None


def test_checkpoints_are_whole_and_the_newest_whole_one_is_found(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    names = {p.name for p in (run / "checkpoints").iterdir()}
    assert names == {"step_0", "step_3", "final"}
    assert latest_checkpoint(run).name == "final"
    piece = next((run / "checkpoints" / "final").glob("*.distcp"))
    piece.write_bytes(piece.read_bytes()[: piece.stat().st_size // 2])
    assert problem_of(run / "checkpoints" / "final")
    assert latest_checkpoint(run).name == "step_3"
    for name in ("step_3", "step_0"):
        (run / "checkpoints" / name / ".metadata").write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        latest_checkpoint(run)


def test_a_checkpoint_appears_only_when_it_is_whole(tiny_run, tmp_path):
    source = tiny_run / "checkpoints" / "step_3"

    def save(location: str) -> None:
        assert not (tmp_path / "checkpoints" / "step_9").exists()
        shutil.copytree(source, location, dirs_exist_ok=True)

    def save_and_die(location: str) -> None:
        shutil.copy(next(source.glob("*.distcp")), location)
        raise KeyboardInterrupt

    callback = SafeCheckpoint(checkpoint_every_n_steps=3)
    assert isinstance(callback, TrainCheckpointCallback)
    target = tmp_path / "checkpoints" / "step_9"
    callback.set_runner_callbacks(save_and_die, None, str(target.parent))
    with pytest.raises(KeyboardInterrupt):
        callback.save_callback(str(target))
    assert not target.exists()
    callback.set_runner_callbacks(save, None, str(target.parent))
    callback.save_callback(str(target))
    assert problem_of(target) is None
    assert str(target) in (target / "resume.yaml").read_text()
    assert [p.name for p in target.parent.iterdir()] == ["step_9"]


def test_a_loss_that_is_not_finite_stops_and_names_the_structures(tiny_data, tmp_path):
    with pytest.raises(DataError, match=r"not finite at step \d+ \(structures \d+"):
        train(
            DEBUG,
            f"data.root={tiny_data}",
            f"job.run_dir={tmp_path}",
            "steps=5",
            "optim.lr=1e30",
            "optim.warmup_factor=1.0",
        )


def test_resuming_from_nothing_is_one_clear_error(tiny_data, tmp_path):
    with pytest.raises(CheckpointError, match="no complete training checkpoint"):
        train(
            DEBUG,
            f"data.root={tiny_data}",
            f"job.run_dir={tmp_path}",
            f"job.runner_state_path={tmp_path}/nowhere",
        )


def test_steps_go_before_epochs_in_the_schedule():
    def final_lr(**length):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = cosine_schedule(0.2, 0.0, 0.01, 10, optimizer, **length)
        for _ in range(20):
            optimizer.step()
            schedule.step()
        return schedule.get_last_lr()[0]

    assert final_lr(epochs=2) == pytest.approx(0.01)
    assert final_lr(epochs=1, steps=40) == pytest.approx(0.01 + 0.99 / 2)
    with pytest.raises(ConfigError, match="length"):
        final_lr()


def test_rows_after_the_resumed_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        metrics_file.append(path, {"kind": "train", "step": step, "loss": float("nan")})
    with path.open("a") as file:
        file.write('{"kind": "train", "st')
    assert [r["loss"] for r in metrics_file.drop_after(path, 2)] == [None, None]
    assert [r["step"] for r in metrics_file.read(path)] == [1, 2]


@pytest.mark.parametrize(
    ("option", "losses_of"),
    [
        ("tasks=s2ef_balance", ["energy", "forces", "expert_balance"]),
        ("model/heads=conservative", ["energy", "forces"]),
        ("batching=max_atoms", ["energy", "forces"]),
    ],
)
def test_options_train(option, losses_of, tiny_data, tmp_path):
    train(
        DEBUG,
        option,
        f"data.root={tiny_data}",
        f"job.run_dir={tmp_path}",
        "job.timestamp_id=run",
        "steps=2",
    )
    last = rows(tmp_path / "run", "train")[-1]
    parts = {k.removeprefix("loss_"): v for k, v in last.items() if k.startswith("loss_")}
    assert sorted(parts) == sorted(losses_of)
    assert all(v > 0 for v in parts.values())
    assert last["loss"] == pytest.approx(sum(parts.values()), rel=1e-5)
    evaluation = rows(tmp_path / "run", "eval")[-1]
    assert all(f"{name}_mae" in evaluation["splits"]["mean"] for name in losses_of)


def test_trains_on_an_ase_database_with_molecules_and_slabs(tmp_path):
    """fairchem's own reader and format; molecules stay without periodic images."""
    for split in ("train", "val_id"):
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        sizes = []
        with ase.db.connect(folder / "data.aselmdb", type="aselmdb") as db:
            for seed in range(6):
                atoms = systems.slab(seed=seed) if seed % 2 else systems.water()
                labels = {"energy": float(seed), "forces": np.full((len(atoms), 3), 0.1)}
                atoms.calc = SinglePointCalculator(atoms, **labels)
                db.write(atoms)
                sizes.append(len(atoms))
        np.savez(folder / "metadata.npz", natoms=np.array(sizes))
    train(
        DEBUG,
        "data=ase_db",
        f"data.root={tmp_path / 'data'}",
        f"job.run_dir={tmp_path}",
        "job.timestamp_id=run",
        "steps=2",
    )
    assert len(losses(tmp_path / "run")) == 2
    (last,) = rows(tmp_path / "run", "eval")
    assert last["splits"]["val_id"]["forces_mae"] > 0
    cfg = resolve(DEBUG, ["data=ase_db", f"data.root={tmp_path / 'data'}", "batch_size=6"])
    batch = next(iter(hydra.utils.instantiate(cfg.runner.train_dataloader)))
    periodic = {int(n): bool(p.any()) for n, p in zip(batch.natoms, batch.pbc, strict=True)}
    assert periodic == {3: False, 14: True}


def test_a_copied_run_keeps_the_order_of_its_checkpoints(tiny_run, tmp_path):
    run = tmp_path / "copy"
    for checkpoint in ("final", "step_3", "step_0"):  # written in the wrong order, with new times
        shutil.copytree(
            tiny_run / "checkpoints" / checkpoint,
            run / "checkpoints" / checkpoint,
            copy_function=shutil.copyfile,
        )
    assert latest_checkpoint(run).name == "final"


def test_a_run_with_a_damaged_newest_checkpoint_continues_from_the_one_before(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "whole")
    piece = next((tmp_path / "whole" / "checkpoints" / "final").glob("*.distcp"))
    piece.write_bytes(piece.read_bytes()[:100])
    train(tiny_run / "canonical_config.yaml", f"job.run_dir={tmp_path}")
    assert losses(tmp_path / "whole") == losses(tiny_run)
    assert problem_of(tmp_path / "whole" / "checkpoints" / "final") is None


def test_going_back_to_an_earlier_checkpoint_replaces_the_later_ones(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "whole")
    checkpoints = tmp_path / "whole" / "checkpoints"
    before = (checkpoints / "step_3" / "inference_ckpt.pt").read_bytes()
    train(
        tiny_run / "canonical_config.yaml",
        f"job.run_dir={tmp_path}",
        f"job.runner_state_path={checkpoints / 'step_0'}",
        "runner.train_eval_unit.optimizer_fn.lr=0.01",
    )
    assert (checkpoints / "step_3" / "inference_ckpt.pt").read_bytes() != before


def test_graphs_built_by_loader_processes_change_no_loss(tiny_data, tiny_run, tmp_path):
    train(
        DEBUG,
        f"data.root={tiny_data}",
        f"job.run_dir={tmp_path}",
        "job.timestamp_id=run",
        "steps=6",
        "max_eval_batches=null",
        "runner.loader_graphs=true",
        "cluster.num_workers=1",
    )
    losses = [[row["loss"] for row in rows(run, "train")] for run in (tmp_path / "run", tiny_run)]
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]
