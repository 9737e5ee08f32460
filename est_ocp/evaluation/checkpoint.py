"""Find and load inference checkpoints, with errors that say what is wrong."""

from __future__ import annotations

import contextlib
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from est_ocp.errors import CheckpointError

INFERENCE_FILE = "inference_ckpt.pt"


def find_inference_checkpoint(path: str | Path) -> Path:
    """Return the inference checkpoint that a path means.

    Parameters
    ----------
    path : path
        The file itself, a checkpoint folder (``checkpoints/step_N``, ``checkpoints/final``), or a
        run's folder, whose newest checkpoint is taken.

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
        found = [
            file
            for file in (path / "checkpoints").glob(f"*/{INFERENCE_FILE}")
            if not file.parent.is_symlink() and not file.parent.name.endswith(".partial")
        ]
        if found:
            return max(found, key=lambda f: f.stat().st_mtime_ns)
    what = "holds no checkpoint" if path.exists() else "does not exist"
    raise CheckpointError(
        f"{path} {what}; name an {INFERENCE_FILE}, a folder checkpoints/step_N, or a run's folder"
    )


def run_dir_of(checkpoint: str | Path) -> Path | None:
    """Return the run that a checkpoint belongs to, or None if it lies elsewhere."""
    file = find_inference_checkpoint(checkpoint).resolve()
    run = file.parents[2] if len(file.parents) > 2 else file.parent
    return run if (run / "canonical_config.yaml").is_file() else None


def read_checkpoint(path: str | Path) -> Any:
    """Read an inference checkpoint (fairchem's ``MLIPInferenceCheckpoint``).

    Only open checkpoints that you trust: reading one can run code that it holds.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or something else.
    """
    file = find_inference_checkpoint(path)
    try:
        content = torch.load(file, map_location="cpu", weights_only=False)
    except (
        RuntimeError,
        EOFError,
        OSError,
        pickle.UnpicklingError,
        KeyError,
        ValueError,
        TypeError,
        IndexError,
    ) as error:
        raise CheckpointError(
            f"{file} is damaged or is no checkpoint ({_first_line(error)}); take another one, or "
            "train again"
        ) from None
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{file} names code that is not installed ({_first_line(error)})"
        ) from None
    if not hasattr(content, "model_config") or not hasattr(content, "ema_state_dict"):
        raise CheckpointError(
            f"{file} is not a fairchem inference checkpoint (it holds a "
            f"{type(content).__name__}); name the {INFERENCE_FILE} of a run"
        )
    return content


def load_unit(path: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Load a checkpoint's averaged (EMA) weights as fairchem's predict unit.

    Parameters
    ----------
    path : path
        As for :func:`find_inference_checkpoint`.
    device : {"cpu", "cuda"}
    dtype : torch.dtype
        float32 or float64.

    Returns
    -------
    MLIPPredictUnit

    Raises
    ------
    CheckpointError
        If the file cannot be used, or its weights do not fit its model.
    """
    from fairchem.core.units.mlip_unit import InferenceSettings, load_predict_unit

    file = find_inference_checkpoint(path)
    read_checkpoint(file)
    settings = InferenceSettings(activation_checkpointing=False, base_precision_dtype=dtype)
    try:
        with quiet():
            return load_predict_unit(file, inference_settings=settings, device=device)
    except (KeyError, RuntimeError, TypeError, AssertionError) as error:
        raise CheckpointError(
            f"the weights in {file} do not fit its model ({_first_line(error)}); was it written "
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


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
