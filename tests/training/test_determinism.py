"""The same seed on the same machine gives the same training to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from est_ocp.training import metrics_file
from tests.training.launch import DEBUG, train

#: What a row says of speed.
TIMES = {"seconds", "samples_per_second", "eval_seconds"}


def figures(run: Path) -> list[dict]:
    """All rows of a run without what depends on speed."""
    rows = metrics_file.read(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Averaged weights of the inference checkpoint."""
    path = run / "checkpoints" / "final" / "inference_ckpt.pt"
    return torch.load(path, map_location="cpu", weights_only=False).ema_state_dict


@pytest.fixture(scope="module")
def again(tiny_data, tmp_path_factory):
    """Run the training of ``tiny_run`` again with changes, in another folder."""

    def run(name: str, *changes: str) -> Path:
        folder = tmp_path_factory.mktemp("again")
        train(
            DEBUG,
            f"data.root={tiny_data}",
            f"job.run_dir={folder}",
            f"job.timestamp_id={name}",
            "steps=6",
            "checkpoint_every=3",
            "max_eval_batches=null",
            *changes,
        )
        return folder / name

    return run


def test_the_same_seed_gives_the_same_bits(tiny_run, again):
    """Losses, gradients, evaluation and weights; also with data from a process of their own."""
    second = again("second", "cluster.num_workers=1")
    assert figures(second) == figures(tiny_run)
    assert len(figures(second)) >= 13
    first_weights, second_weights = weights(tiny_run), weights(second)
    assert first_weights.keys() == second_weights.keys()
    for name, value in first_weights.items():
        assert torch.equal(second_weights[name], value), name


def test_deterministic_mode_trains_and_another_seed_differs(tiny_run, again, monkeypatch):
    """No operation of the model lacks an implementation that the mode allows, on a processor."""
    # fairchem sets it too; this restores it.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    try:
        run = again("other", "job.seed=1", "job.deterministic=true", "max_eval_batches=1")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.deterministic = before[1]
    losses, others = (
        [row["loss"] for row in figures(r) if row["kind"] == "train"] for r in (tiny_run, run)
    )
    assert len(losses) == len(others) == 6
    assert not set(losses) & set(others)
