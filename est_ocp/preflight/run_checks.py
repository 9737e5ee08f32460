"""Checks of the run itself: length, devices, disk, folder."""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path

import torch

from est_ocp.preflight.check import Check, Status
from est_ocp.preflight.model_checks import GIB, size_text
from est_ocp.preflight.run_config import RunConfig
from est_ocp.preflight.sample import SplitSample

#: Bytes a parameter of a training checkpoint: weights, AdamW's two moments, averages, and the
#: inference checkpoint with weights of its own.
CHECKPOINT_BYTES = 24


def check_steps(samples: list[SplitSample], config: RunConfig) -> Check:
    """Optimiser steps an epoch and in all."""
    count = sum(sample.length for sample in samples)
    if config.max_atoms is not None:
        mean = sum(s.natoms.mean() * s.length for s in samples) / max(count, 1)
        per_rank = config.max_atoms / mean
    else:
        per_rank = int(config.batch_size or 1)
    total_batch = per_rank * config.ranks
    epoch = math.ceil(count / total_batch)
    steps, epochs = config.runner.get("max_steps"), config.runner.get("max_epochs")
    all_steps = steps if steps is not None else epoch * (epochs or 1)
    figures = {
        "structures": count, "total_batch": total_batch, "steps_per_epoch": epoch,
        "steps": all_steps, "ranks": config.ranks,
    }  # fmt: skip
    found = (
        f"{epoch:,} an epoch ({count:,} structures, {total_batch:g} a step on {config.ranks} "
        f"ranks); {all_steps:,} in all ({all_steps / epoch:.3g} epochs)"
    )
    if count < total_batch:
        remedy = "fewer structures than one step takes: lower batch_size or the number of ranks"
        return Check("steps", Status.WARN, found, remedy, figures)
    warmup = (config.unit.get("cosine_lr_scheduler_fn") or {}).get("warmup_epochs") or 0
    if warmup * epoch >= all_steps:
        remedy = f"the warm-up alone lasts {warmup * epoch:.0f} steps: lower optim.warmup_epochs"
        return Check("steps", Status.WARN, found, remedy, figures)
    return Check("steps", Status.OK, found, figures=figures)


def check_devices(config: RunConfig) -> Check:
    """Whether the GPUs that the config asks for are there."""
    wanted = str(config.job["device_type"]).upper()
    scheduler = config.job["scheduler"]
    per_node = int(scheduler["ranks_per_node"])
    here = torch.cuda.device_count()
    found = f"{config.ranks} ranks on {wanted}, scheduler {scheduler['mode']}; GPUs here: {here}"
    figures = {"ranks": config.ranks, "gpus_here": here}
    if wanted == "CUDA" and str(scheduler["mode"]).upper() == "LOCAL":
        if here == 0:
            remedy = "no GPU here: run it elsewhere, or take cluster=local_cpu"
            return Check("devices", Status.WARN, found, remedy, figures)
        if per_node > here:
            remedy = f"set job.scheduler.ranks_per_node={here}"
            return Check("devices", Status.FAIL, found, remedy, figures)
    return Check("devices", Status.OK, found, figures=figures)


def existing_parent(path: Path) -> Path:
    """Nearest folder of a path that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def check_run_dir(config: RunConfig) -> Check:
    """Whether the run's folder can be written to, and is new."""
    run_dir = Path(config.job["run_dir"])
    run = run_dir / str(config.job["timestamp_id"])
    base = existing_parent(run_dir)
    remedy = "choose another job.run_dir"
    try:
        with tempfile.NamedTemporaryFile(dir=base):
            pass
    except OSError as error:
        found = f"{run_dir} cannot be written to ({error.strerror})"
        return Check("run folder", Status.FAIL, found, remedy)
    if (run / "checkpoints").is_dir():
        remedy = "training would continue that run: choose another job.timestamp_id for a new one"
        return Check("run folder", Status.WARN, f"{run} is there already", remedy)
    return Check("run folder", Status.OK, f"{run_dir} can be written to")


def check_disk(config: RunConfig, parameters: int) -> Check:
    """Room for the checkpoints: those kept, ``final``, and one being written."""
    settings = config.checkpointing
    if not settings.get("checkpoint_every_n_steps"):
        remedy = "an interruption loses everything: set checkpoint_every"
        return Check("disk", Status.WARN, "no checkpoints are written", remedy)
    one = parameters * CHECKPOINT_BYTES
    needed = one * (int(settings.get("max_saved_checkpoints") or 2) + 2)
    free = shutil.disk_usage(existing_parent(Path(config.job["run_dir"]))).free
    figures = {"checkpoint_gib": one / GIB, "needed_gib": needed / GIB, "free_gib": free / GIB}
    found = f"checkpoints need {size_text(needed)} ({size_text(one)} each), "
    found += f"{size_text(free)} are free"
    remedy = "free some space, choose another job.run_dir, or keep fewer checkpoints "
    remedy += "(runner.callbacks.checkpoint.max_saved_checkpoints)"
    if free < needed:
        return Check("disk", Status.FAIL, found, remedy, figures)
    if free < 2 * needed:
        return Check("disk", Status.WARN, found, remedy, figures)
    return Check("disk", Status.OK, found, figures=figures)
