"""Find and load inference checkpoints, with errors that say what is wrong."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from est_ocp.errors import CheckpointError
from est_ocp.training.checkpoint import checkpoint_folders
from est_ocp.training.manifest import mismatch
from est_ocp.training.safe_config import check_config
from est_ocp.training.safe_load import first_line, load_file, only_weights
from est_ocp.trust import trusted

INFERENCE_FILE = "inference_ckpt.pt"


def find_inference_checkpoint(path: str | Path) -> Path:
    """Return the inference checkpoint that a path means.

    Parameters
    ----------
    path : path
        The file itself, a checkpoint folder (``checkpoints/step_N``, ``checkpoints/final``), or a
        run's folder, whose newest whole checkpoint is taken; damaged ones are skipped with a
        warning.

    Raises
    ------
    CheckpointError
        If there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if (path / INFERENCE_FILE).is_file():
        return path / INFERENCE_FILE
    if (path / "checkpoints").is_dir():
        for folder in checkpoint_folders(path / "checkpoints"):
            if not (folder / INFERENCE_FILE).is_file():
                continue
            _, problem = mismatch(folder, [INFERENCE_FILE])
            if problem is None:
                return folder / INFERENCE_FILE
            logging.warning(f"skipped the checkpoint {folder}: {problem}")
    what = "holds no checkpoint" if path.exists() else "does not exist"
    raise CheckpointError(
        f"{path} {what}; name an {INFERENCE_FILE}, a folder checkpoints/step_N, or a run's folder"
    )


def run_dir_of(checkpoint: str | Path) -> Path | None:
    """Return the run that a checkpoint belongs to, or None if it lies elsewhere."""
    file = find_inference_checkpoint(checkpoint).resolve()
    run = file.parents[2] if len(file.parents) > 2 else file.parent
    return run if (run / "canonical_config.yaml").is_file() else None


def read_checkpoint(path: str | Path, trust: bool = False) -> Any:
    """Read an inference checkpoint (fairchem's ``MLIPInferenceCheckpoint``).

    Nothing that the file names is run: weights are read with ``weights_only=True``, and its
    configs may name models of est-ocp and fairchem only.

    Parameters
    ----------
    path : path
        As for :func:`find_inference_checkpoint`.
    trust : bool
        Skip these checks, for a file from a source that you trust.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, something else, or refers to other code.
    """
    return _read(find_inference_checkpoint(path), trust)


def _read(file: Path, trust: bool, mmap: bool = False) -> Any:
    _, problem = mismatch(file.parent, [file.name])
    if problem is not None:
        raise CheckpointError(f"{file} is damaged ({problem}); take another one, or train again")
    content = load_file(file, trust, mmap)
    if not hasattr(content, "model_config") or not hasattr(content, "ema_state_dict"):
        raise CheckpointError(
            f"{file} is not a fairchem inference checkpoint (it holds a "
            f"{type(content).__name__}); name the {INFERENCE_FILE} of a run"
        )
    if not trusted(trust):
        check_config(content.model_config, str(file), "model_config")
        check_config(content.tasks_config, str(file), "tasks_config")
    return content


def load_unit(
    path: str | Path,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    trust: bool = False,
) -> Any:
    """Load a checkpoint's averaged (EMA) weights as fairchem's predict unit.

    The file is checked as by :func:`read_checkpoint`, and fairchem too reads nothing but weights.

    Parameters
    ----------
    path : path
        As for :func:`find_inference_checkpoint`.
    device : {"cpu", "cuda"}
    dtype : torch.dtype
        float32 or float64.
    trust : bool
        Run what the file names, for a file from a source that you trust.

    Returns
    -------
    MLIPPredictUnit

    Raises
    ------
    CheckpointError
        If the file cannot be used, refers to other code, or its weights do not fit its model.
    """
    from fairchem.core.units.mlip_unit import InferenceSettings, load_predict_unit

    file = find_inference_checkpoint(path)
    _read(file, trust, mmap=True)
    settings = InferenceSettings(activation_checkpointing=False, base_precision_dtype=dtype)
    try:
        with quiet(), only_weights(trust):
            return load_predict_unit(file, inference_settings=settings, device=device)
    except (KeyError, RuntimeError, TypeError, AssertionError) as error:
        raise CheckpointError(
            f"the weights in {file} do not fit its model ({first_line(error)}); was it written "
            "by another version?"
        ) from error


@contextlib.contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Hold back what fairchem and torch log up to a level."""
    before = logging.root.manager.disable
    logging.disable(max(level, before))
    try:
        yield
    finally:
        logging.disable(before)
