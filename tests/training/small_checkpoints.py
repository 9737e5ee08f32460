"""Training checkpoints of a few numbers, and payloads, for the tests."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from est_ocp.training import SafeCheckpoint


class Touch:
    """An object whose unpickling runs a command that makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


def write_state(location: str, **state: Any) -> None:
    """Write what fairchem's unit writes into a checkpoint, for a model of one small tensor."""
    folder = Path(location)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "resume.yaml").write_text("job: {runner_state_path: null}\n")
    content = {"model": {"weight": torch.randn(500)}, "progress": {"step": 3}} | state
    dcp.save({"unit_state": content, "config": {"job": {"seed": 0}}}, checkpoint_id=folder)
    torch.save({"weights": torch.randn(500)}, folder / "inference_ckpt.pt")


class _State:
    """As much of torchtnt's state as the callback asks for."""

    should_stop = False


def _unit(step: int) -> SimpleNamespace:
    return SimpleNamespace(train_progress=SimpleNamespace(num_steps_completed=step))


class SmallRun:
    """A run's folder into which checkpoints are saved through the callback."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.callback = SafeCheckpoint(checkpoint_every_n_steps=1, max_saved_checkpoints=keep)
        self.callback.set_runner_callbacks(write_state, None, str(self.checkpoints))

    def save(self, step: int) -> Path:
        """Save as at the start of a step; return where the checkpoint goes."""
        self.callback.on_train_step_start(_State(), _unit(step))
        return self.checkpoints / f"step_{step}"

    def finish(self) -> Path:
        """Save as at the end of the training."""
        self.callback.on_train_end(_State(), _unit(9))
        return self.checkpoints / "final"

    def names(self) -> list[str]:
        """Names in the folder of checkpoints."""
        return sorted(path.name for path in self.checkpoints.iterdir())
