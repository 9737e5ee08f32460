"""Checkpoints that survive a kill at any moment, and finding the newest one."""

from __future__ import annotations

import json
import logging
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairchem.core.common import distutils
from fairchem.core.components.callbacks import TrainCheckpointCallback
from omegaconf import OmegaConf
from torch.distributed.checkpoint import FileSystemReader

from est_ocp.errors import CheckpointError

_PARTIAL = ".partial"
_SAVED_FILE = "saved.json"


def is_complete(checkpoint: Path) -> bool:
    """Whether a training checkpoint's index and all the bytes that it points to are there."""
    if checkpoint.name.endswith(_PARTIAL) or not (checkpoint / "resume.yaml").is_file():
        return False
    try:
        stored = FileSystemReader(checkpoint).read_metadata().storage_data.values()
        sizes = {info.relative_path: 0 for info in stored}
        for info in stored:
            sizes[info.relative_path] = max(sizes[info.relative_path], info.offset + info.length)
        return all((checkpoint / name).stat().st_size >= size for name, size in sizes.items())
    except Exception:  # a damaged index can fail in any way that unpickling can
        return False


def saved_at(checkpoint: Path) -> int:
    """When a checkpoint was saved, nanoseconds; written into it, so copies keep their order."""
    try:
        return int(json.loads((checkpoint / _SAVED_FILE).read_text())["time_ns"])
    except (OSError, ValueError, KeyError):
        return (checkpoint / ".metadata").stat().st_mtime_ns


def latest_checkpoint(run_dir: str | Path) -> Path:
    """Return the newest complete training checkpoint of a run.

    Parameters
    ----------
    run_dir : path
        ``<job.run_dir>/<job.timestamp_id>``, the folder that holds ``checkpoints``.

    Raises
    ------
    CheckpointError
        If there is none.
    """
    folder = Path(run_dir) / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"{run_dir} is not a run: it has no folder 'checkpoints'")
    found = [p for p in folder.iterdir() if p.is_dir() and not p.is_symlink() and is_complete(p)]
    if not found:
        raise CheckpointError(f"{folder} holds no complete checkpoint; start the run again")
    return max(found, key=saved_at)


def resume_command(run_dir: str | Path, overrides: list[str] | None = None) -> list[str]:
    """Return the fairchem command that continues a run from its newest complete checkpoint.

    The run may have been moved: its present place goes onto the command line.
    """
    run = Path(run_dir).resolve()
    checkpoint = latest_checkpoint(run)
    return [
        str(Path(sys.executable).with_name("fairchem")),
        "--config",
        str(checkpoint / "resume.yaml"),
        f"job.runner_state_path={checkpoint}",
        f"job.run_dir={run.parent}",
        f"job.timestamp_id={run.name}",
        *(overrides or []),
    ]


def random_state() -> dict[str, Any]:
    """Return the state of every random generator of this process."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - the legacy generator is the global one
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the random generators to a state from :func:`random_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _random_state_file(checkpoint: Path) -> Path:
    return checkpoint / f"random_state_rank{distutils.get_rank()}.pt"


class SafeCheckpoint(TrainCheckpointCallback):
    """fairchem's checkpoint callback, atomic and with the random generators' states.

    A checkpoint is written as ``step_N.partial`` and renamed when everything is in it, so a kill
    while saving leaves the earlier ones untouched. Dropout goes on after a resume as it would
    have without the interruption, because each rank's random state is saved and restored.

    Parameters
    ----------
    checkpoint_every_n_steps : int or None
        Steps between checkpoints. None: none, not even at the end.
    max_saved_checkpoints : int
        Newest checkpoints that are kept.
    """

    def set_runner_callbacks(
        self,
        save_callback: Callable[[str], None],
        load_callback: Callable[[str | None], None],
        checkpoint_dir: str,
    ) -> None:
        """Receive the runner's functions; called by the runner."""

        self._resumed: Path | None = None

        def save(location: str) -> None:
            self._save(save_callback, Path(location))

        super().set_runner_callbacks(save, load_callback, checkpoint_dir)

    def on_train_start(self, state: Any, unit: Any) -> None:
        """Restore the random state after a resume; clear away what a kill left behind."""
        if distutils.is_master() and self.checkpoint_dir:
            for leftover in Path(self.checkpoint_dir).glob(f"*{_PARTIAL}"):
                shutil.rmtree(leftover)
        location = getattr(unit, "lazy_state_location", None)
        if location is None:
            return
        self._resumed = Path(location).resolve()
        file = _random_state_file(Path(location))
        if file.is_file():
            restore_random_state(torch.load(file, weights_only=False))
        else:
            logging.warning(
                f"{location} has no random state for rank {distutils.get_rank()} (the number of "
                "ranks changed?): dropout continues with other random numbers"
            )

    def _save(self, save_callback: Callable[[str], None], path: Path) -> None:
        # Torchtnt saves at the start too: the very checkpoint that the run was resumed from.
        resumed, self._resumed = self._resumed, None
        if path.name != "final" and path.resolve() == resumed:
            return
        partial = path.with_name(path.name + _PARTIAL)
        if distutils.is_master():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        distutils.synchronize()
        torch.save(random_state(), _random_state_file(partial))
        save_callback(str(partial))
        distutils.synchronize()
        if distutils.is_master():
            config = OmegaConf.load(partial / "resume.yaml")
            config.job.runner_state_path = str(path)
            OmegaConf.save(config, partial / "resume.yaml")
            (partial / _SAVED_FILE).write_text(json.dumps({"time_ns": time.time_ns()}))
            if path.exists():
                shutil.rmtree(path)
            partial.rename(path)
        distutils.synchronize()
