"""Finding a run's newest whole training checkpoint."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

from est_ocp.errors import CheckpointError
from est_ocp.training.manifest import mismatch, read_manifest, sync_folder
from est_ocp.training.safe_load import read_index, storage_sizes

#: Ending of a checkpoint that is being written, and of one that is being replaced.
PARTIAL, REPLACED = ".partial", ".replaced"


def problem_of(checkpoint: Path, hashes: bool = True) -> str | None:
    """Return what is wrong with a training checkpoint, or None.

    Every file is compared with the list that was written with the checkpoint; one of an earlier
    version, which has no list, is compared with the sizes that its index asks for.

    Parameters
    ----------
    checkpoint : Path
    hashes : bool
        Compare contents and not only sizes.

    Raises
    ------
    CheckpointError
        If the index of a checkpoint without a list refers to code.
    """
    if checkpoint.name.endswith((PARTIAL, REPLACED)):
        return "it was not finished"
    for name in ("resume.yaml", ".metadata"):
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    listed, problem = mismatch(checkpoint, hashes=hashes)
    if listed:
        return problem
    try:
        for name, size in storage_sizes(read_index(checkpoint, trust=False)).items():
            found = (checkpoint / name).stat().st_size
            if found < size:
                return f"{name} has {found} bytes instead of {size}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except CheckpointError as error:
        return str(error)
    return None


def saved_at(checkpoint: Path) -> int:
    """When a checkpoint was saved, nanoseconds; written into it, so copies keep their order."""
    try:
        content = read_manifest(checkpoint)
    except (OSError, ValueError):
        content = None
    if content is not None:
        return content["time_ns"]
    index = checkpoint / ".metadata"
    return (index if index.is_file() else checkpoint).stat().st_mtime_ns


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, newest first, whole or not."""
    found = [
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.is_symlink() and path.suffix not in (PARTIAL, REPLACED)
    ]
    return sorted(found, key=saved_at, reverse=True)


def newest_whole(run_dir: str | Path, hashes: bool = True) -> Path | None:
    """Return the newest complete training checkpoint of a run, None if it has none at all yet.

    Newer ones that are damaged are skipped with one warning each, which says why.

    Parameters
    ----------
    run_dir : path
        ``<job.run_dir>/<job.timestamp_id>``, the folder that holds ``checkpoints``.
    hashes : bool
        Compare contents and not only sizes.

    Raises
    ------
    CheckpointError
        If there are checkpoints and all of them are damaged: a run that began anew in their place
        would remove what can perhaps be saved.
    """
    folder = Path(run_dir) / "checkpoints"
    # An empty one is what fairchem leaves of a signal before the first checkpoint.
    found = [p for p in checkpoint_folders(folder) if any(p.iterdir())] if folder.is_dir() else []
    for checkpoint in found:
        problem = problem_of(checkpoint, hashes)
        if problem is None:
            return checkpoint
        logging.warning(f"skipped the checkpoint {checkpoint}: {problem}")
    if found:
        raise CheckpointError(
            f"{folder} holds no complete checkpoint ({found[0].name}: {problem}); put back a copy "
            "of one, or give the folder another name to start the run again"
        )
    return None


def latest_checkpoint(run_dir: str | Path) -> Path:
    """Return the newest complete training checkpoint of a run.

    Raises
    ------
    CheckpointError
        If there is none.
    """
    folder = Path(run_dir) / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"{run_dir} is not a run: it has no folder 'checkpoints'")
    checkpoint = newest_whole(run_dir)
    if checkpoint is None:
        raise CheckpointError(f"{folder} holds no checkpoint; start the run again")
    return checkpoint


def finish_interrupted(folder: Path) -> None:
    """Put a folder of checkpoints in order after a kill.

    A checkpoint that lacked only its name gets it; what else was being written or replaced goes.
    """
    if not folder.is_dir():
        return
    for partial in folder.glob(f"*{PARTIAL}"):
        target = partial.with_name(partial.name.removesuffix(PARTIAL))
        if mismatch(partial) == (True, None):
            put_in_place(partial, target)
        else:
            shutil.rmtree(partial)
    for replaced in folder.glob(f"*{REPLACED}"):
        target = replaced.with_name(replaced.name.removesuffix(REPLACED))
        if target.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(target)


def put_in_place(partial: Path, target: Path) -> None:
    """Give a finished checkpoint its name; one that has it already goes afterwards."""
    replaced = target.with_name(target.name + REPLACED)
    if target.exists():
        if replaced.exists():
            shutil.rmtree(replaced)
        target.rename(replaced)
    partial.rename(target)
    sync_folder(target.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


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
        # the newest at the job's start, which may come after other jobs of this run
        "job.runner_state_path=null",
        f"job.run_dir={run.parent}",
        f"job.timestamp_id={run.name}",
        *(overrides or []),
    ]
