"""Losses and gradients that are no numbers, or huge: what a training does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import get_total_norm
from torch.optim.optimizer import register_optimizer_step_pre_hook

from est_ocp.errors import DataError
from est_ocp.evaluation.checkpoint import read_checkpoint
from est_ocp.training import SkipNonFiniteSteps, latest_checkpoint, metrics_file
from tests.reliability.spoilt import with_bad_record
from tests.training.launch import DEBUG, fairchem_command, run_command, train


def huge_force(record: dict[str, Any]) -> None:
    """A label that float32 can hold, but not the square of."""
    record["forces"] = np.array(record["forces"])
    record["forces"][~np.asarray(record["fixed"], bool)] = 1e30


def huge_energy(record: dict[str, Any]) -> None:
    """An outlier a million times larger than the others."""
    record["energy"] = 1e6


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    return [r for r in metrics_file.read(run / "metrics.jsonl") if r["kind"] == kind]


def final_weights(run: Path) -> list[torch.Tensor]:
    """The last weights and their averages."""
    content = read_checkpoint(latest_checkpoint(run) / "inference_ckpt.pt")
    found = [*content.model_state_dict.values(), *content.ema_state_dict.values()]
    return [value.float() for value in found if value.numel()]


def state_of(unit: Any) -> list[torch.Tensor]:
    """Copies of the weights, their averages and all that the optimiser keeps."""
    kept = list(unit.model.state_dict().values()) + list(unit.ema_model.state_dict().values())
    for state in unit.optimizer.state.values():
        kept += [state[name] for name in ("step", "exp_avg", "exp_avg_sq")]
    return [value.clone() for value in kept]


def same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    pairs = zip(before, after, strict=False)
    return len(before) == len(after) and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("clip", ["100", "null"])
def test_a_step_that_is_skipped_changes_nothing(clip, tiny_data, tmp_path, monkeypatch):
    name = with_bad_record(tiny_data, tmp_path / "data", huge_force)
    before: list[list[torch.Tensor]] = []
    unchanged = {}
    judge, end = SkipNonFiniteSteps._is_bad, SkipNonFiniteSteps.on_train_step_end

    def is_bad(self, unit):
        before.append(state_of(unit))
        return judge(self, unit)

    def on_end(self, state, unit):
        unchanged[unit.train_progress.num_steps_completed] = same(before[-1], state_of(unit))
        end(self, state, unit)

    monkeypatch.setattr(SkipNonFiniteSteps, "_is_bad", is_bad)
    monkeypatch.setattr(SkipNonFiniteSteps, "on_train_step_end", on_end)
    train(
        DEBUG, f"data.root={tmp_path / 'data'}", f"job.run_dir={tmp_path}", "job.timestamp_id=run",
        "guard=skip", "steps=12", "checkpoint_every=100", "max_eval_batches=1",
        f"optim.clip_grad_norm={clip}",
    )  # fmt: skip
    # Two passes over the data: the record is met twice.
    skipped = rows(tmp_path / "run", "skipped")
    assert [row["skipped"] for row in skipped] == [1, 2]
    assert all(name in row["structures"] for row in skipped)
    steps = {row["step"] for row in skipped}
    assert unchanged == {step: step in steps for step in range(1, 13)}
    for row in rows(tmp_path / "run", "train"):
        assert (row["loss"] is None) == (row["step"] in steps)
    assert all(torch.isfinite(w).all() for w in final_weights(tmp_path / "run"))


def test_one_skipped_step_too_many_stops(tiny_data, tmp_path):
    name = with_bad_record(tiny_data, tmp_path / "data", huge_force)
    with pytest.raises(DataError, match=rf"structures .*{name}.* after 0 such steps") as caught:
        train(
            DEBUG, f"data.root={tmp_path / 'data'}", f"job.run_dir={tmp_path}", "steps=6",
            "guard=skip", "runner.callbacks.guard.max_skipped=0",
        )  # fmt: skip
    assert "est-ocp resume" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_huge_gradient_is_clipped(tiny_data, tmp_path):
    """The squared error of one outlier; the default guard does not object to a finite norm."""
    with_bad_record(tiny_data, tmp_path / "data", huge_energy)
    used: list[float] = []

    def see_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        used.append(float(get_total_norm([g for g in gradients if g is not None])))

    hook = register_optimizer_step_pre_hook(see_gradients)
    try:
        train(
            DEBUG, f"data.root={tmp_path / 'data'}", f"job.run_dir={tmp_path}",
            "job.timestamp_id=run", "steps=6", "checkpoint_every=100", "max_eval_batches=1",
            "optim.lr=1e-3", "optim.clip_grad_norm=10",
            "tasks.energy.loss_fn.loss_fn._target_=fairchem.core.modules.loss.MSELoss",
        )  # fmt: skip
    finally:
        hook.remove()
    norms = [row["grad_norm"] for row in rows(tmp_path / "run", "train")]
    assert max(norms) > 1e4 * sorted(norms)[2]
    # Without the step by which fairchem's checkpoints prepare the optimiser.
    assert [u for u in used if u] == pytest.approx([min(n, 10.0) for n in norms], rel=1e-4)
    weights = final_weights(tmp_path / "run")
    assert all(torch.isfinite(w).all() for w in weights)
    assert max(float(w.abs().max()) for w in weights) < 10


def test_the_published_losses_bound_the_gradient_of_an_outlier(tiny_data, tmp_path):
    """Absolute errors: an outlier pulls no harder than any other structure."""
    with_bad_record(tiny_data, tmp_path / "data", huge_energy)
    train(
        DEBUG, f"data.root={tmp_path / 'data'}", f"job.run_dir={tmp_path}", "job.timestamp_id=run",
        "steps=6", "checkpoint_every=100", "max_eval_batches=1",
    )  # fmt: skip
    logged = rows(tmp_path / "run", "train")
    assert max(row["loss"] for row in logged) > 1e5
    assert max(row["grad_norm"] for row in logged) < 1e3


@pytest.mark.slow
def test_two_ranks_skip_the_same_step(tiny_data, tmp_path):
    name = with_bad_record(tiny_data, tmp_path / "data", huge_force)
    words = [f"data.root={tmp_path / 'data'}", f"job.run_dir={tmp_path}", "job.timestamp_id=run"]
    run_command(
        fairchem_command(
            DEBUG, *words, "guard=skip", "steps=6", "batch_size=2", "checkpoint_every=100",
            "job.scheduler.ranks_per_node=2",
        ),
        timeout=600,
    )  # fmt: skip
    (skipped,) = rows(tmp_path / "run", "skipped")
    # Of the rank that met the record only.
    assert name in skipped["structures"]
    assert len(skipped["structures"]) == 2
    others = [r["loss"] for r in rows(tmp_path / "run", "train") if r["step"] != skipped["step"]]
    assert len(others) == 5
    assert all(math.isfinite(loss) for loss in others)
    assert all(torch.isfinite(w).all() for w in final_weights(tmp_path / "run"))
