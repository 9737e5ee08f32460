"""fairchem's training runner with callbacks by name and a clean end on SIGTERM and Ctrl-C."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairchem.core.common import distutils
from fairchem.core.components.train.train_runner import TrainEvalRunner

from est_ocp.data import EvaluationBatchSampler, limit_elements, release_workers
from est_ocp.errors import CheckpointError, ConfigError
from est_ocp.models.batch_graph import GraphCollater
from est_ocp.models.graph import RadiusGraph
from est_ocp.models.trained_elements import TrainedElements
from est_ocp.training.averaging import lean_average
from est_ocp.training.checkpoint import finish_interrupted, newest_whole, problem_of
from est_ocp.training.safe_load import check_training_state, read_index
from est_ocp.training.stop_in_time import StopInTime, StoppedInTimeError
from est_ocp.training.threads import share_cores


class TrainRunner(TrainEvalRunner):
    """Train and evaluate.

    Parameters
    ----------
    train_dataloader, eval_dataloader : DataLoader
    train_eval_unit : MLIPTrainEvalUnit
    callbacks : mapping of str to Callback, or sequence of Callback, optional
        A mapping lets the command line change or drop one callback by its name.
    max_epochs, max_steps : int, optional
        Length of the training; ``max_steps`` replaces ``max_epochs`` where it is given.
    loader_graphs : bool
        Build the radius graphs in the loaders' processes; without such processes nothing changes.
    **options
        Those of fairchem's ``TrainEvalRunner``.

    Raises
    ------
    ConfigError
        If the loaders are to build graphs for a backbone that is not est-ocp's.
    """

    def __init__(
        self,
        train_dataloader: Any,
        eval_dataloader: Any,
        train_eval_unit: Any,
        callbacks: Mapping[str, Any] | Sequence[Any] | None = None,
        max_epochs: int | None = 1,
        max_steps: int | None = None,
        loader_graphs: bool = False,
        **options: Any,
    ) -> None:
        share_cores()
        if loader_graphs:
            for loader in (train_dataloader, eval_dataloader):
                loader.collate_fn = GraphCollater(
                    loader.collate_fn, _radius_graph(train_eval_unit.model)
                )
        if isinstance(callbacks, Mapping):
            callbacks = list(callbacks.values())
        super().__init__(
            train_dataloader,
            eval_dataloader,
            train_eval_unit,
            callbacks=[c for c in callbacks or () if c is not None],
            max_epochs=None if max_steps is not None else max_epochs,
            max_steps=max_steps,
            **options,
        )

    def run(self) -> None:
        """Train; the loaders' worker processes end with it.

        Raises
        ------
        ConfigError
            If the part of the evaluation that is asked for holds nothing of some split, where
            fairchem would divide by zero after the first evaluation.
        """
        self._check_tasks()
        sampler = self.eval_dataloader.batch_sampler
        if self.max_eval_steps_per_epoch and isinstance(sampler, EvaluationBatchSampler):
            unseen = sampler.unseen_splits(self.max_eval_steps_per_epoch)
            if unseen:
                raise ConfigError(
                    f"{self.max_eval_steps_per_epoch} evaluation batches of {sampler.batch_size} "
                    f"hold nothing of {', '.join(unseen)}; set a larger max_eval_batches or "
                    "eval_batch_size"
                )
        if self.stop_before_timeout_min is not None:
            self.callbacks = [*self.callbacks, self._stop_in_time()]
            self.stop_before_timeout_min = None
        try:
            with lean_average(self.train_eval_unit):
                super().run()
        except StoppedInTimeError:
            distutils.synchronize()
        finally:
            for loader in (self.train_dataloader, self.eval_dataloader):
                release_workers(loader)

    def _stop_in_time(self) -> StopInTime:
        seconds = 3600 * self._get_slurm_timeout_hr() - 60 * self.stop_before_timeout_min
        callback = self.checkpoint_callback
        keeps = callback is not None and callback.checkpoint_every_n_steps
        return StopInTime(
            seconds,
            # looked up when it is called: the runner fills it in only then
            (lambda place: callback.save_callback(place)) if keeps else None,
            self.job_config.metadata.checkpoint_dir,
        )

    def _check_tasks(self) -> None:
        """Let the backbone refuse tasks and elements that it cannot serve."""
        unit = self.train_eval_unit
        datasets = {name for task in unit.tasks for name in task.datasets}
        backbone = _backbone(unit.model)
        backbone.validate_tasks(
            {name: [task for task in unit.tasks if name in task.datasets] for name in datasets}
        )
        for loader in (self.train_dataloader, self.eval_dataloader):
            limit_elements(loader.dataset, getattr(backbone, "max_num_elements", sys.maxsize))

    def save_state(self, checkpoint_location: str, is_preemption: bool = False) -> bool:
        """Save, or on a signal link the newest complete checkpoint as the one to continue from."""
        if not is_preemption:
            return super().save_state(checkpoint_location)
        # Sizes alone: a signal leaves little time, and the next start reads the contents.
        try:
            newest = newest_whole(self._folder.parent, hashes=False)
        except CheckpointError:  # for the next start to say
            newest = None
        if newest is None:
            return False
        # fairchem's signal handler makes this an empty folder, where the link is to be put
        if os.path.isdir(checkpoint_location) and not os.path.islink(checkpoint_location):
            os.rmdir(checkpoint_location)
        elif os.path.lexists(checkpoint_location):
            os.remove(checkpoint_location)
        os.symlink(newest.resolve(), checkpoint_location)
        logging.info(f"to be continued from {newest}")
        return True

    def load_state(self, checkpoint_location: str | None) -> None:
        """Continue from a checkpoint, or from the run's newest complete one if none is named.

        Rank 0 looks, so that all ranks continue from the same one. What a checkpoint refers to
        besides numbers is refused before anything of it is run.

        Raises
        ------
        CheckpointError
            If the named folder holds no complete checkpoint, or one that would run code, or if
            all of this run's checkpoints are damaged.
        """
        message: list[Any] = [None, None]
        if distutils.is_master():
            try:
                message[0] = self._choose(checkpoint_location)
            except (CheckpointError, OSError) as error:  # the other ranks are waiting
                message[1] = str(error)
        distutils.broadcast_object_list(message, 0)
        chosen, error = message
        if error is not None:
            raise CheckpointError(error)
        if chosen is not None:
            self._forget_elements_of_before(Path(chosen))
            super().load_state(chosen)

    def _forget_elements_of_before(self, checkpoint: Path) -> None:
        """Where a checkpoint of before noted no elements, neither do those that follow it."""
        keys = read_index(checkpoint).state_dict_metadata
        if not any(str(key).endswith("trained_elements.met") for key in keys):
            for elements in TrainedElements.all_in(self.train_eval_unit):
                elements.give_up()

    def _choose(self, location: str | None) -> str | None:
        finish_interrupted(self._folder)
        if location and os.path.islink(location):
            # Left by a signal's handler, which had no time to read files: only a hint.
            problem = problem_of(Path(location).resolve())
            if problem is not None:
                logging.warning(f"skipped the checkpoint {location}: {problem}")
                location = None
        if not location:
            newest = newest_whole(self._folder.parent)
            if newest is None:
                logging.info("no checkpoint in this run yet: starting from scratch")
                return None
            logging.info(f"continuing this run from {newest}")
            location = str(newest)
        elif (problem := problem_of(Path(location).resolve())) is not None:
            raise CheckpointError(
                f"job.runner_state_path: {location} holds no complete training checkpoint "
                f"({problem}); name a folder checkpoints/step_N of an earlier run"
            )
        check_training_state(Path(location))
        return location

    @property
    def _folder(self) -> Path:
        """The folder of this run's checkpoints."""
        return Path(self.job_config.metadata.checkpoint_dir)


def _backbone(model: Any) -> Any:
    """The backbone of a model that may be wrapped for data-parallel training."""
    return getattr(model, "module", model).backbone


def _radius_graph(model: Any) -> RadiusGraph:
    graph = getattr(_backbone(model), "radius_graph", None)
    if not isinstance(graph, RadiusGraph):
        raise ConfigError(
            f"runner.loader_graphs: {type(_backbone(model)).__name__} builds its graphs itself; "
            "set it to false"
        )
    return graph
