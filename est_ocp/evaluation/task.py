"""Which of OC20's tasks a checkpoint serves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from est_ocp.errors import CheckpointError
from est_ocp.evaluation.checkpoint import find_inference_checkpoint, read_checkpoint

#: Task to what a model for it predicts.
DESCRIPTIONS = {
    "s2ef": "S2EF (energy and forces of a structure)",
    "is2re": "IS2RE (relaxed energy of an initial structure)",
}


def task_of(tasks: Iterable[Mapping[str, Any] | Any]) -> str:
    """Return the OC20 task that fairchem tasks make up.

    Parameters
    ----------
    tasks : iterable
        A checkpoint's ``tasks_config``, or ``Task`` objects.

    Returns
    -------
    {"s2ef", "is2re"}
        ``s2ef`` where there are forces; ``is2re`` for an energy alone or beside auxiliary tasks.

    Raises
    ------
    CheckpointError
        If there is no energy.
    """
    names = [task["name"] if isinstance(task, Mapping) else task.name for task in tasks]
    if "energy" not in names:
        raise CheckpointError(
            f"a model with the tasks {', '.join(names) or 'none'} serves neither S2EF nor IS2RE: "
            "it has no task 'energy'"
        )
    return "s2ef" if "forces" in names else "is2re"


def checkpoint_task(path: str | Path) -> str:
    """Return the OC20 task of a checkpoint: ``s2ef`` or ``is2re``.

    Raises
    ------
    CheckpointError
        If the checkpoint cannot be read or serves neither.
    """
    return task_of(read_checkpoint(find_inference_checkpoint(path)).tasks_config)
