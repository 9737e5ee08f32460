"""Batches of systems with a target for every task."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.units.mlip_unit.mlip_unit import DEFAULT_EXCLUDE_KEYS, mt_collater_adapter

from est_ocp.errors import ConfigError, DataError

#: Tasks that have no label: their target is zero.
AUXILIARY_TASKS = ("expert_balance",)

#: Task whose target is each atom's way from its (possibly noisy) position to its relaxed one.
POSITION_TASK = "position_delta"

#: What IS2RE records may have besides the structure; a batch has them where all its systems do.
OPTIONAL_KEYS = ("energy_initial", "pos_relaxed")


class TaskCollater:
    """Callable that turns a list of systems into one batch.

    It adds to fairchem's ``MTCollater`` zero targets for auxiliary tasks, the target
    ``pos_relaxed - pos`` of the task ``position_delta``, clear errors, and batches without labels
    for prediction. The given systems are not altered.

    Parameters
    ----------
    tasks : sequence of Task
        fairchem's task objects; they are not altered.
    auxiliary : iterable of str
        Names of tasks whose target is zero (a loss on the head's output alone).
    allow_missing_targets : bool
        Fill in infinity, which fairchem's losses and metrics leave out, where a system lacks a
        label: for test splits. Otherwise that is an error.
    """

    def __init__(
        self,
        tasks: Sequence[Any],
        auxiliary: Iterable[str] = AUXILIARY_TASKS,
        allow_missing_targets: bool = False,
    ) -> None:
        if not tasks:
            raise ConfigError("collate needs at least one task; give it the run's tasks")
        self.tasks = [task for task in tasks if not task.inference_only]
        self.auxiliary = frozenset(auxiliary)
        self.allow_missing_targets = allow_missing_targets
        self.datasets = {name for task in self.tasks for name in task.datasets}
        # fairchem leaves the periodicity out of its batches; molecules would become periodic.
        keys = [key for key in DEFAULT_EXCLUDE_KEYS if key != "pbc"]
        self._collater = mt_collater_adapter(list(tasks), exclude_keys=keys)

    def __call__(self, systems: list[AtomicData]) -> AtomicData:
        completed = [self._complete(system) for system in systems]
        for key in OPTIONAL_KEYS:
            if not all(key in system for system in completed):
                for system in completed:
                    system.__keys__.discard(key)
        return self._collater(completed)

    def _complete(self, system: AtomicData) -> AtomicData:
        # A shallow copy with its own set of keys: the system may be cached by its dataset.
        result = copy.copy(system)
        result.__keys__ = set(system.__keys__)
        name = system.get("dataset", None)
        name = name[0] if isinstance(name, list) and name else name
        if name not in self.datasets:
            raise DataError(
                f"sample {system.sid[0]} belongs to dataset '{name}', which no task lists "
                f"({', '.join(sorted(self.datasets))}); make dataset_name and the tasks agree"
            )
        if not bool(torch.isfinite(system.pos).all()):
            raise DataError(
                f"sample {system.sid[0]} of dataset '{name}' has positions that are not finite; "
                "remove or repair it"
            )
        result.dataset = name
        for task in self.tasks:
            if name not in task.datasets or task.name in result:
                continue
            if task.name in self.auxiliary:
                result[task.name] = _filled(task, system, 0.0)
            elif task.name == POSITION_TASK and "pos_relaxed" in system:
                result[task.name] = system.pos_relaxed - system.pos
            elif self.allow_missing_targets:
                result[task.name] = _filled(task, system, torch.inf)
            elif task.name == POSITION_TASK:
                raise DataError(
                    f"sample {system.sid[0]} of dataset '{name}' has no 'pos_relaxed', which the "
                    "task position_delta needs; use labelled IS2RE files (data.*.task: is2re), or "
                    "train without the task (tasks=is2re)"
                )
            else:
                raise DataError(
                    f"sample {system.sid[0]} of dataset '{name}' has no '{task.name}', which a "
                    "task needs; use labelled data, key_mapping, or allow_missing_targets: true "
                    "to predict"
                )
        return result


def collate(
    tasks: Sequence[Any],
    auxiliary: Iterable[str] = AUXILIARY_TASKS,
    allow_missing_targets: bool = False,
) -> TaskCollater:
    """Return the ``collate_fn`` of a data loader; see :class:`TaskCollater`."""
    return TaskCollater(tasks, auxiliary, allow_missing_targets)


def drop_repeats(sample_ids: torch.Tensor) -> torch.Tensor:
    """Return the positions of the first occurrence of every sample, ascending.

    Ranks repeat a few samples so that all have equally many batches; evaluation gathers the
    results of all ranks and keeps these positions.

    Parameters
    ----------
    sample_ids : Tensor, int64 [n]
        ``batch.sample_id`` of one split, gathered.

    Returns
    -------
    Tensor, int64 [number of different ids]
    """
    order = torch.argsort(sample_ids, stable=True)
    ordered = sample_ids[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first].sort().values


def _filled(task: Any, system: AtomicData, value: float) -> torch.Tensor:
    """Return a constant target of the task's shape: [1] or [1, ...] by system, [N, ...] by atom."""
    dim = list(task.out_spec.dim)
    if task.level == "atom":
        shape = [system.num_nodes, *dim]
    else:
        shape = [1] if dim in ([], [1]) else [1, *dim]
    return torch.full(shape, value, dtype=system.pos.dtype)
