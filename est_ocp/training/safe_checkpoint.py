"""Checkpoints that survive a kill at any moment, a full disk and a read-only folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.components.callbacks import TrainCheckpointCallback
from omegaconf import OmegaConf
from torch.distributed.checkpoint.api import CheckpointException

from est_ocp.errors import CheckpointError
from est_ocp.models.trained_elements import TrainedElements
from est_ocp.training.checkpoint import PARTIAL, checkpoint_folders, put_in_place
from est_ocp.training.manifest import write_manifest
from est_ocp.training.random_state import random_state, random_state_file, restore_random_state
from est_ocp.training.safe_load import first_line, load_file

_FINAL = "final"


class SafeCheckpoint(TrainCheckpointCallback):
    """fairchem's checkpoint callback, atomic and with the random generators' states.

    A checkpoint is written as ``step_N.partial``, listed with sizes and hashes, and renamed when
    all of it is on the disk, so a kill while saving leaves the earlier ones untouched. Dropout
    goes on after a resume as it would have without the interruption, because each rank's random
    state is saved and restored.

    A checkpoint that cannot be saved (a full disk, a folder that has become read-only) is left
    out with a warning, and training goes on: the disk may have room again at the next one. The
    first one of a run and the last one, ``final``, end the training instead.

    Parameters
    ----------
    checkpoint_every_n_steps : int or None
        Steps between checkpoints. None: none, not even at the end.
    max_saved_checkpoints : int
        Newest checkpoints that are kept, besides ``final``.

    Raises
    ------
    CheckpointError
        While training, if the first or the last checkpoint cannot be saved.
    """

    def set_runner_callbacks(
        self,
        save_callback: Callable[[str], None],
        load_callback: Callable[[str | None], None],
        checkpoint_dir: str,
    ) -> None:
        """Receive the runner's functions; called by the runner."""
        self._resumed: Path | None = None
        self._elements: list[TrainedElements] = []
        self._has_one = False
        self._first_step = 0

        def save(location: str) -> None:
            self._save(save_callback, Path(location))

        super().set_runner_callbacks(save, load_callback, checkpoint_dir)

    def on_train_start(self, state: Any, unit: Any) -> None:
        """Restore the random state after a resume."""
        self._elements = TrainedElements.all_in(unit)
        self._first_step = unit.train_progress.num_steps_completed
        location = getattr(unit, "lazy_state_location", None)
        if location is None:
            return
        self._has_one = True
        self._resumed = Path(location).resolve()
        file = random_state_file(Path(location))
        if file.is_file():
            restore_random_state(load_file(file))
        else:
            logging.warning(
                f"{location} has no random state for rank {distutils.get_rank()} (the number of "
                "ranks changed?): dropout continues with other random numbers"
            )

    def on_train_step_start(self, state: Any, unit: Any) -> None:
        """Save if it is time, and then remove the oldest checkpoints."""
        save, folder = self._checkpoint_hooks()
        step = unit.train_progress.num_steps_completed
        if self.checkpoint_every_n_steps and step % self.checkpoint_every_n_steps == 0:
            save(str(Path(folder) / f"step_{step}"))

    def on_train_end(self, state: Any, unit: Any) -> None:
        """Save ``final``, unless the training had ended before this job."""
        _, folder = self._checkpoint_hooks()
        trained = unit.train_progress.num_steps_completed > self._first_step
        if not trained and (Path(folder) / _FINAL).resolve() == self._resumed:
            logging.info("this training had ended before: nothing to do")
        else:
            super().on_train_end(state, unit)

    def _save(self, save_callback: Callable[[str], None], path: Path) -> None:
        # Torchtnt saves at the start too: the very checkpoint that the run was resumed from.
        resumed, self._resumed = self._resumed, None
        if path.name != _FINAL and path.resolve() == resumed:
            return
        problem = self._write(save_callback, path)
        if problem is None:
            self._has_one = True
            return
        if distutils.is_master():
            shutil.rmtree(path.with_name(path.name + PARTIAL), ignore_errors=True)
        told = f"the checkpoint {path.name} could not be saved in {path.parent} ({problem}); "
        if path.name == _FINAL or not self._has_one:
            raise CheckpointError(
                told + "free space there or make the folder writable, and run the same command "
                "again: it continues from the newest checkpoint"
            )
        if distutils.is_master():
            logging.warning(
                told + "the earlier ones are whole and training goes on; free space there or make "
                "the folder writable before the next one"
            )

    def _write(self, save_callback: Callable[[str], None], path: Path) -> str | None:
        """Write a checkpoint; return what went wrong on any rank, the same on all of them."""
        partial = path.with_name(path.name + PARTIAL)
        master = distutils.is_master()
        for elements in self._elements:
            elements.share()
        problem = _agree(_problem(_make_folder, partial) if master else None)
        if problem is None:
            file = random_state_file(partial)
            problem = _agree(_problem(torch.save, random_state(), file))
        if problem is None:
            problem = _agree(_problem(save_callback, str(partial)))
        if problem is None:
            problem = _agree(_problem(self._finish, partial, path) if master else None)
        return problem

    def _finish(self, partial: Path, path: Path) -> None:
        config = OmegaConf.load(partial / "resume.yaml")
        config.job.runner_state_path = str(path)
        OmegaConf.save(config, partial / "resume.yaml")
        write_manifest(partial)
        put_in_place(partial, path)
        # Only now, with a newer one in place. A folder that resists costs space, not the run.
        steps = [p for p in checkpoint_folders(path.parent) if p.name.startswith("step_")]
        for old in steps[max(self.max_saved_checkpoints, 1) :]:
            shutil.rmtree(old, ignore_errors=True)


def _make_folder(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _problem(function: Callable[..., Any], *arguments: Any) -> str | None:
    """Call a function that writes files; return what went wrong, in a few words."""
    try:
        function(*arguments)
    except (OSError, RuntimeError, CheckpointException) as error:
        cause: BaseException = error
        if isinstance(error, CheckpointException) and error.failures:
            cause = next(iter(error.failures.values()))[0]
        while not isinstance(cause, OSError) and (cause.__cause__ or cause.__context__):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror[0].lower() + cause.strerror[1:]
        text = first_line(cause)
        return "a file could not be written whole" if "PytorchStreamWriter" in text else text
    return None


def _agree(problem: str | None) -> str | None:
    """Return the first problem of any rank, to all ranks."""
    message = [next(filter(None, distutils.gather_objects(problem) or []), None)]
    distutils.broadcast_object_list(message, 0)
    return message[0]
