"""Build the model and take one step with it: losses, gradients, memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import hydra
import numpy as np
import torch
from fairchem.core.units.mlip_unit.mlip_unit import compute_loss
from hydra.errors import HydraException
from torch.autograd.graph import saved_tensors_hooks

from est_ocp.errors import ConfigError, ESTError
from est_ocp.preflight.check import Check, Status
from est_ocp.preflight.run_config import RunConfig
from est_ocp.preflight.sample import SplitSample

#: On a processor the step is taken with a few atoms and the memory of a batch extrapolated.
CPU_ATOMS = 160
GIB = 2**30


@dataclass
class Step:
    """One forward and backward pass.

    Attributes
    ----------
    losses : dict of str to float
        Weighted loss of each task.
    missing, zero, not_finite : lists of str
        Parameters without gradient, with an all-zero one, with one that is not finite.
    atoms : int
        Atoms of the batch.
    saved_bytes : int
        Tensors kept for the backward pass, without parameters.
    peak_bytes : int or None
        Peak of the GPU's memory; None on a processor.
    seconds : float
    """

    losses: dict[str, float]
    missing: list[str]
    zero: list[str]
    not_finite: list[str]
    atoms: int
    saved_bytes: int
    peak_bytes: int | None
    seconds: float


class SavedBytes:
    """Sum of the storages that autograd keeps, each counted once."""

    def __init__(self, model: torch.nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self._kept: list[Any] = []
        self.total = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Hook that autograd calls with each tensor it keeps."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            # Held, so that no other tensor gets the same address while we count.
            self._kept.append(storage)
            self.total += storage.nbytes()
        return tensor

    @staticmethod
    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        """Hook that autograd calls in the backward pass."""
        return tensor


def size_text(size: float) -> str:
    """Bytes for reading."""
    return f"{size / GIB:.1f} GiB" if size > 0.5 * GIB else f"{size / 2**20:.1f} MiB"


def made(node: Any) -> Any:
    """Build what a config node describes.

    Raises
    ------
    ESTError
        The thing's own error without Hydra's frame, or a ConfigError with what Hydra says.
    """
    try:
        return hydra.utils.instantiate(node)
    except HydraException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ESTError):
            cause = cause.__cause__ or cause.__context__
        raise cause or ConfigError(" ".join(str(error).split())) from None


def build(config: RunConfig) -> tuple[torch.nn.Module | None, list[Any], Check]:
    """Build the model and the tasks, and let the backbone judge these."""
    name = "model"
    try:
        model = made(config.node.runner.train_eval_unit.model)
        tasks = [made(t) for t in config.node.runner.train_eval_unit.tasks]
        datasets = {dataset for task in tasks for dataset in task.datasets}
        validate = getattr(model.backbone, "validate_tasks", None)
        if validate is not None:
            validate({d: [t for t in tasks if d in t.datasets] for d in datasets})
    except ESTError as error:
        return None, [], Check(name, Status.FAIL, str(error), "correct the model or tasks")
    count = sum(p.numel() for p in model.parameters())
    backbone = type(model.backbone).__name__
    return model, tasks, Check(name, Status.OK, f"{backbone}, {count:,} parameters",
                               figures={"parameters": count})  # fmt: skip


def choose(sample: SplitSample, config: RunConfig, device: str) -> list[Any]:
    """Structures of the trial batch: a whole one on a GPU, a few small ones on a processor."""
    if device == "cuda":
        limit = config.max_atoms or np.inf
        count = config.batch_size or len(sample.systems)
        order = sample.systems
    else:
        limit, count = CPU_ATOMS, config.batch_size or len(sample.systems)
        order = sorted(sample.systems, key=lambda s: int(s.natoms))
        order = order[len(order) // 4 :]
    chosen, atoms = [], 0
    for system in order[:count]:
        if chosen and atoms + int(system.natoms) > limit:
            break
        chosen.append(system)
        atoms += int(system.natoms)
    return chosen


def take_step(
    model: torch.nn.Module,
    tasks: Sequence[Any],
    systems: Sequence[Any],
    config: RunConfig,
    device: str,
) -> Step:
    """Forward, loss and backward as the trainer does them, in training mode.

    Raises
    ------
    ESTError
        If the batch cannot be made of these structures.
    """
    collate = made(config.node.runner.train_dataloader.collate_fn)
    batch = collate(list(systems)).to(device)
    model = model.to(device).train()
    bf16 = bool(config.unit.get("bf16"))
    counter = SavedBytes(model)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    # Hooks hold on to what they see; the GPU's own counter needs none.
    watch = saved_tensors_hooks(counter.pack, counter.unpack) if device == "cpu" else nullcontext()
    with watch:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            losses = compute_loss(tasks, model(batch), batch)
        sum(losses.values()).backward()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    step = Step(
        losses={name: loss.item() for name, loss in losses.items()},
        missing=[], zero=[], not_finite=[],
        atoms=int(batch.natoms.sum()),
        saved_bytes=counter.total,
        peak_bytes=torch.cuda.max_memory_allocated() if device == "cuda" else None,
        seconds=seconds,
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            step.missing.append(name)
        elif not torch.isfinite(parameter.grad).all():
            step.not_finite.append(name)
        elif not parameter.grad.any():
            step.zero.append(name)
    return step


def check_step(step: Step) -> list[Check]:
    """Losses and gradients of the trial step."""
    figures = {"losses": step.losses, "atoms": step.atoms, "seconds": step.seconds}
    found = ", ".join(f"{name} {value:.4g}" for name, value in step.losses.items())
    found += f" ({step.atoms} atoms, {step.seconds:.1f} s)"
    finite = all(np.isfinite(value) for value in step.losses.values())
    remedy = "look at labels and normalisers above; in bf16 try optim.bf16=false"
    checks = [
        Check("loss", Status.OK, found, figures=figures)
        if finite
        else Check("loss", Status.FAIL, f"not finite: {found}", remedy, figures)
    ]
    figures = {"missing": step.missing, "zero": step.zero, "not_finite": step.not_finite}
    if step.not_finite:
        found = f"{len(step.not_finite)} parameters' are not finite, e.g. {step.not_finite[0]}"
        checks.append(Check("gradients", Status.FAIL, found, remedy, figures))
    elif step.missing:
        found = f"{len(step.missing)} parameters have none, e.g. {step.missing[0]}"
        remedy = "no task depends on them, and several ranks would stop: drop that head, or add "
        remedy += "its task"
        checks.append(Check("gradients", Status.FAIL, found, remedy, figures))
    else:
        found = "finite, every parameter has one"
        if step.zero:
            found += f"; {len(step.zero)} are zero for this batch, e.g. {step.zero[0]}"
        checks.append(Check("gradients", Status.OK, found, figures=figures))
    return checks


def check_memory(step: Step, parameters: int, batch_p99: float, ema: bool, gpu_gib: float) -> Check:
    """Memory of a rank: weights, gradients, AdamW, averages, and what a large batch keeps.

    Parameters
    ----------
    step : Step
    parameters : int
    batch_p99 : float
        Atoms of a large batch (99th percentile).
    ema : bool
        Whether averaged weights are kept.
    gpu_gib : float
        Memory of the GPU to train on, GiB.
    """
    states = parameters * 4 * (4 + ema)
    if step.peak_bytes is not None:
        # Measured with weights and gradients; AdamW's moments and the averages come on top.
        activations = max(step.peak_bytes - 8 * parameters, 0)
        how = "peak measured here"
    else:
        activations = step.saved_bytes
        how = f"from what autograd keeps for {step.atoms} atoms"
    scaled = activations * batch_p99 / step.atoms
    total = (states + scaled) / GIB
    figures = {
        "states_gib": states / GIB, "activations_gib": scaled / GIB, "total_gib": total,
        "gpu_gib": gpu_gib,
    }  # fmt: skip
    found = (
        f"about {size_text(total * GIB)} a rank ({size_text(states)} weights and optimiser, "
        f"{size_text(scaled)} for {batch_p99:.0f} atoms, {how}); GPU {gpu_gib:.0f} GiB"
    )
    remedy = "lower batch_size, or set model.backbone.activation_checkpointing=true"
    if total > 1.2 * gpu_gib:
        return Check("memory", Status.FAIL, found, remedy, figures)
    if total > 0.8 * gpu_gib:
        return Check("memory", Status.WARN, found, remedy, figures)
    return Check("memory", Status.OK, found, figures=figures)
