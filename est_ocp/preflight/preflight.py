"""All checks of a training config in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from est_ocp.preflight import data_checks, graph_checks, label_checks, model_checks, run_checks
from est_ocp.preflight.check import Check, Report, Status
from est_ocp.preflight.run_config import RunConfig
from est_ocp.preflight.sample import SplitSample, read_sample

#: Structures of each split that are read.
SAMPLE = 256
#: Memory of the GPU that is assumed where there is none, GiB.
GPU_GIB = 80.0


def preflight(
    node: Any,
    samples: int = SAMPLE,
    gpu_gib: float | None = None,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> Report:
    """Check a training config against its data, model and machine.

    Parameters
    ----------
    node : DictConfig
        From :func:`est_ocp.cli.config.resolve`.
    samples : int
        Structures of each split to read.
    gpu_gib : float, optional
        Memory of the GPU to train on, GiB; default: of the one here, else 80.
    seed : int
        Of the sample.
    tell : callable, optional
        Called with what is being done.

    Returns
    -------
    Report

    Raises
    ------
    ConfigError
        If it is not a training config.
    """
    config = RunConfig(node)
    say = tell or (lambda text: None)
    read = []
    for split in config.splits:
        say(f"reading {split.label}")
        read.append(read_sample(split, samples, seed))
    report = Report()
    for sample in read:
        report.checks += check_split(sample, config)
    train = [s for s in read if s.split.role == "train" and s.systems]
    if not any(s.split.role == "eval" for s in read):
        remedy = "name the validation splits in the data config"
        report.checks.append(Check("evaluation", Status.FAIL, "no evaluation split", remedy))
    for sample in train[:1]:
        say("building graphs")
        report.checks.append(data_checks.check_batches(sample, config))
        report.checks += data_checks.check_avg_num_nodes(sample, config)
        report.checks += graph_checks.check_neighbors(sample, config)
    if train:
        report.checks.append(run_checks.check_steps(train, config))
    say("building the model")
    torch.manual_seed(int(config.job.get("seed") or 0))
    model, tasks, check = model_checks.build(config)
    report.checks.append(check)
    if model is not None:
        parameters = check.figures["parameters"]
        say("one forward and backward pass")
        report.checks += check_step(model, tasks, train, config, parameters, gpu_gib)
        report.checks.append(run_checks.check_disk(config, parameters))
    report.checks.append(run_checks.check_devices(config))
    report.checks.append(run_checks.check_run_dir(config))
    return report


def check_split(sample: SplitSample, config: RunConfig) -> Iterator[Check]:
    """All checks of one split."""
    yield data_checks.check_count(sample)
    if sample.open_error is not None or not sample.length:
        return
    yield data_checks.check_readable(sample)
    if not sample.systems:
        return
    yield data_checks.check_metadata(sample)
    yield data_checks.check_ids(sample)
    yield data_checks.check_elements(sample, config)
    yield data_checks.check_free_atoms(sample, config)
    yield data_checks.check_tags(sample, config)
    if "energy" in config.tasks:
        kind = label_checks.check_energy_kind(sample)
        yield kind
        if sample.split.role == "train":
            if kind.status is Status.FAIL:
                # Wrong labels must not lead anybody to fit the normaliser to them.
                yield Check("energy normaliser", Status.SKIP, "the energy labels come first")
            else:
                yield label_checks.check_energy_normalizer(sample, config)
    yield from label_checks.check_forces(sample, config)


def check_step(
    model: torch.nn.Module,
    tasks: list[Any],
    train: list[SplitSample],
    config: RunConfig,
    parameters: int,
    gpu_gib: float | None,
) -> list[Check]:
    """The trial step and the memory estimate, or why they could not be made."""
    limit = config.backbone.get("max_num_elements", np.inf)
    sound = [s for s in train if all(int(d.atomic_numbers.max()) < limit for d in s.systems)]
    if not sound:
        return [Check("loss", Status.SKIP, "no training structures that the model can take")]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if gpu_gib is None:
        gpu_gib = GPU_GIB
        if device == "cuda":
            gpu_gib = torch.cuda.get_device_properties(0).total_memory / model_checks.GIB
    try:
        systems = model_checks.choose(sound[0], config, device)
        step = model_checks.take_step(model, tasks, systems, config, device)
    except torch.OutOfMemoryError as error:
        found = str(error).splitlines()[0]
        remedy = "lower batch_size, or set model.backbone.activation_checkpointing=true"
        return [Check("memory", Status.FAIL, found, remedy)]
    except Exception as error:  # whatever it is, training would end with it too
        found = f"the step failed: {' '.join(str(error).split())[:300]}"
        return [Check("loss", Status.FAIL, found, "correct the data, the tasks or the model")]
    large = float(np.percentile(data_checks.batch_atoms(sound[0], config), 99))
    ema = bool(config.unit.get("ema_decay"))
    checks = model_checks.check_step(step)
    return [*checks, model_checks.check_memory(step, parameters, large, ema, gpu_gib)]
