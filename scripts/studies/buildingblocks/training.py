"""Trainings of one variant, a seed each, side by side; their errors, latency and equivariance.

A loop of its own and not fairchem's trainer: start-up, loading and logging of a hundred trainings
would take longer than the trainings. Model, head, optimiser, schedule, clipping and averaged
weights are those of ``configs/qm9`` with ``optim=qm9_short``, the loss is the same mean absolute
error. On GPUs a whole step, from choosing molecules to averaging weights, is one CUDA graph.
"""

from __future__ import annotations

import copy
import gc
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from buildingblocks.molecules import (
    FlatMolecules,
    data_order,
    in_double,
    read_cache,
    turned,
)
from buildingblocks.variants import Variant
from est_ocp.nn.random_rotation import RandomRotation

#: Random frames of variants that turn the points in training; a matrix exponential in every step
#: could not be part of a CUDA graph.
FRAMES = 4096
#: Steps that are timed, and as many before them.
TIMED_STEPS = 20
#: Molecules a batch where nothing is trained.
EVALUATION_BATCH = 256
#: Last part of the training whose mean error is reported.
LAST = 0.05


@dataclass(frozen=True)
class Protocol:
    """What all trainings share.

    Attributes
    ----------
    data : str
        File of :func:`buildingblocks.molecules.write_cache`.
    steps : int
        Of each training; with `seconds` the most there can be.
    seconds : float or None
        Train so many steps as take this time, by the variant's own step alone on the card.
    batch_size : int
    lr : float
        Largest learning rate: after a linear warm-up it falls as a cosine.
    test_molecules, rotation_molecules : int
        How many of the test set, from its start, measure the error and the equivariance.
    tiny : bool
        The smallest models, to try everything out.
    """

    data: str
    steps: int = 3000
    seconds: float | None = None
    batch_size: int = 64
    lr: float = 1e-3
    lr_min_factor: float = 0.01
    warmup: float = 0.03
    weight_decay: float = 5e-3
    clip: float = 10.0
    ema_decay: float = 0.995
    test_molecules: int = 1_000_000
    rotation_molecules: int = 256
    tiny: bool = False


class FramePool(nn.Module):
    """Random frames drawn from a fixed set of them.

    Parameters
    ----------
    rotation : RandomRotation
        That it takes the place of.
    """

    def __init__(self, rotation: RandomRotation) -> None:
        super().__init__()
        self.register_buffer("frames", rotation(FRAMES), persistent=False)

    def forward(self, num_graphs: int) -> torch.Tensor:
        """Wigner matrices [num_graphs, I, I]."""
        chosen = torch.randint(len(self.frames), (num_graphs,), device=self.frames.device)
        return self.frames[chosen]


def build(variant: Variant, protocol: Protocol) -> tuple[nn.Module, float]:
    """Return the variant's model and the label's scale (its training set's standard deviation)."""
    import hydra
    from hydra import compose, initialize_config_module

    words = [*variant.overrides(protocol.tiny), "data.target=alpha"]
    with initialize_config_module("est_ocp.configs", version_base=None):
        config = compose("train_qm9", words)
    model = hydra.utils.instantiate(config.model)
    for module in list(model.modules()):
        if isinstance(getattr(module, "random_rotation", None), RandomRotation):
            module.random_rotation = FramePool(module.random_rotation)
    return model, float(config.data.normalizer.rmsd)


def rates(protocol: Protocol, steps: int) -> torch.Tensor:
    """Learning rate of every step [steps]."""
    warm = max(1, round(protocol.warmup * steps))
    low = protocol.lr_min_factor
    factors = [
        min((i + 1) / warm, 1.0) * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * i / steps)))
        for i in range(steps)
    ]
    return protocol.lr * torch.tensor(factors, dtype=torch.float32)


class Trainee:
    """One model in training, with everything that a step needs on its device.

    Parameters
    ----------
    variant : Variant
    seed : int
        Of the weights and of the order of the data: the same for all variants.
    molecules : FlatMolecules
        Training set, on the device.
    protocol : Protocol
    """

    def __init__(
        self, variant: Variant, seed: int, molecules: FlatMolecules, protocol: Protocol
    ) -> None:
        device = molecules.pos.device
        torch.manual_seed(seed)
        model, self.scale = build(variant, protocol)
        self.variant, self.protocol, self.molecules = variant, protocol, molecules
        self.model = model.to(device).train()
        order = data_order(len(molecules), protocol.batch_size, protocol.steps, seed)
        self.size = molecules.padded_size(order.to(device))
        self.order = order.to(device)
        self.lr_table = rates(protocol, protocol.steps).to(device)
        self.lr = torch.tensor(protocol.lr, device=device)
        self.counter = torch.zeros(1, dtype=torch.int64, device=device)
        self.errors = torch.zeros(protocol.steps, device=device)
        skip = self.model.no_weight_decay()
        named = list(self.model.named_parameters())
        groups = [
            {"params": [p for n, p in named if n not in skip], "lr": self.lr},
            {"params": [p for n, p in named if n in skip], "lr": self.lr, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            weight_decay=protocol.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        for group in self.optimizer.param_groups:
            # The optimiser copies tensors that it is given.
            group["lr"] = self.lr
        self.parameters = [p for _, p in named]
        self.average = [p.detach().clone() for p in self.parameters]
        self._start = [p.detach().clone() for p in self.parameters]
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.graph: torch.cuda.CUDAGraph | None = None

    def _step(self) -> None:
        chosen = self.order.index_select(0, self.counter)[0]
        self.lr.copy_(self.lr_table.index_select(0, self.counter)[0])
        batch = self.molecules.batch(chosen, *self.size)
        label = self.molecules.label[chosen] / self.scale
        self.optimizer.zero_grad(set_to_none=True)
        out = self.model(batch)
        error = (out["target"]["target"].reshape(-1)[:-1] - label).abs().mean()
        loss = error
        if self.variant.balance:
            uneven = out["expert_balance"]["expert_balance"][:-1].mean()
            loss = error + self.variant.balance * uneven
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.protocol.clip)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - self.protocol.ema_decay)
            self.errors.index_copy_(0, self.counter, error.detach()[None])
            self.counter += 1

    def capture(self) -> None:
        """Record the step as a CUDA graph; weights and optimiser are as before afterwards."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph, stream=self.stream):
            self._step()
        self.graph = graph
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Go back to the start."""
        for parameter, average, start in zip(
            self.parameters, self.average, self._start, strict=True
        ):
            parameter.copy_(start)
            average.copy_(start)
        for state in self.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()
        self.counter.zero_()

    def step(self) -> None:
        """One step of training; on GPUs it does not wait for its end."""
        if self.graph is None:
            self._step()
            return
        with torch.cuda.stream(self.stream):
            self.graph.replay()

    def step_ms(self) -> float:
        """Time of a step alone, milliseconds; the training is at its start again afterwards."""
        count = max(1, min(TIMED_STEPS if self.stream else 1, self.protocol.steps // 2))
        for _ in ("warm-up", "timed"):
            _wait(self.stream)
            started = time.perf_counter()
            for _ in range(count):
                self.step()
            _wait(self.stream)
        seconds = time.perf_counter() - started
        self.restart()
        return 1e3 * seconds / count

    def shorten(self, steps: int) -> None:
        """Train for fewer steps; the learning rate falls over these."""
        self.lr_table[:steps] = rates(self.protocol, steps).to(self.lr_table.device)

    def averaged(self) -> nn.Module:
        """Copy of the model with the averaged weights, for evaluation."""
        self.optimizer.zero_grad(set_to_none=True)
        model = copy.deepcopy(self.model).eval()
        with torch.no_grad():
            for parameter, average in zip(model.parameters(), self.average, strict=True):
                parameter.copy_(average)
        return model


def _wait(stream: torch.cuda.Stream | None) -> None:
    if stream is not None:
        torch.cuda.synchronize()


@torch.no_grad()
def test_error(model: nn.Module, molecules: FlatMolecules, scale: float, count: int) -> float:
    """Mean absolute error of the first `count` molecules, in the label's unit."""
    chosen = torch.arange(min(count, len(molecules)), device=molecules.pos.device)
    total = 0.0
    for part in chosen.split(EVALUATION_BATCH):
        out = model(molecules.tight_batch(part))["target"]["target"].reshape(-1)[:-1]
        total += float((out.double() * scale - molecules.label[part].double()).abs().sum())
    return total / len(chosen)


@torch.no_grad()
def rotation_error(
    model: nn.Module, molecules: FlatMolecules, scale: float, count: int
) -> tuple[float, float]:
    """Mean change of the prediction when a molecule is turned, in float64.

    Returns
    -------
    float, float
        In the label's unit, and over the predictions' standard deviation.
    """
    model = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(1)
    before, after = [], []
    chosen = torch.arange(min(count, len(molecules)), device=molecules.pos.device)
    for part in chosen.split(EVALUATION_BATCH):
        batch = in_double(molecules.tight_batch(part))
        for found, given in ((before, batch), (after, turned(batch, generator))):
            found.append(model(given)["target"]["target"].reshape(-1)[:-1])
    before, after = torch.cat(before), torch.cat(after)
    change = (after - before).abs().mean()
    return float(change * scale), float(change / before.std())


@torch.no_grad()
def inference_ms(model: nn.Module, molecules: FlatMolecules, size: int) -> float:
    """Time of predictions for a batch, without choosing it, milliseconds; a CUDA graph on GPUs."""
    count = min(size, len(molecules))
    batch = molecules.tight_batch(torch.arange(count, device=molecules.pos.device))
    stream = None
    run = lambda: model(batch)  # noqa: E731
    if batch.pos.is_cuda:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                model(batch)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            model(batch)
        run = graph.replay
    repeats = TIMED_STEPS if stream else 1
    for _ in range(2):
        _wait(stream)
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        _wait(stream)
    return 1e3 * (time.perf_counter() - started) / repeats


def _trainees(
    variant: Variant, seeds: Sequence[int], molecules: FlatMolecules, protocol: Protocol
) -> tuple[list[Trainee], str]:
    """Trainings of all seeds, and whether their steps are CUDA graphs (``graph``) or ``eager``."""
    made = [Trainee(variant, seed, molecules, protocol) for seed in seeds]
    if not molecules.pos.is_cuda:
        return made, "eager"
    try:
        for trainee in made:
            trainee.capture()
        return made, "graph"
    except RuntimeError as error:
        print(f"{variant.name}: no CUDA graph ({error})", flush=True)
    del made
    torch.cuda.synchronize()
    return [Trainee(variant, seed, molecules, protocol) for seed in seeds], "eager"


#: Data of this process, by file and device.
_DATA: dict[tuple[str, str], dict[str, FlatMolecules]] = {}


def run_group(item: tuple[Variant, Sequence[int], Protocol], device: str) -> list[dict[str, Any]]:
    """Train one variant with several seeds at once and return a row for each.

    Parameters
    ----------
    item : (Variant, seeds, Protocol)
    device : str
    """
    variant, seeds, protocol = item
    began = time.perf_counter()
    if (protocol.data, device) not in _DATA:
        _DATA[protocol.data, device] = read_cache(protocol.data, device)
    data = _DATA[protocol.data, device]
    cuda = device.startswith("cuda")
    if cuda:
        torch.backends.cuda.matmul.allow_tf32 = True
    trainees, mode = _trainees(variant, seeds, data["train"], protocol)
    step_ms = trainees[0].step_ms()
    steps = protocol.steps
    if protocol.seconds is not None:
        steps = max(2, min(steps, round(1e3 * protocol.seconds / step_ms)))
        for trainee in trainees:
            trainee.shorten(steps)
    started = time.perf_counter()
    for _ in range(steps):
        for trainee in trainees:
            trainee.step()
    if cuda:
        torch.cuda.synchronize()
    trained = time.perf_counter() - started
    rows = []
    latency = None
    for seed, trainee in zip(seeds, trainees, strict=True):
        model = trainee.averaged()
        error = test_error(model, data["test"], trainee.scale, protocol.test_molecules)
        if latency is None:
            latency = inference_ms(model, data["test"], protocol.batch_size)
        last = trainee.errors[:steps][-max(1, round(LAST * steps)) :]
        change, relative = rotation_error(
            model, data["test"], trainee.scale, protocol.rotation_molecules
        )
        del model
        rows.append(
            {
                "variant": variant.name,
                "seed": seed,
                "test_mae": error,
                "train_mae": float(last.mean()) * trainee.scale,
                "rotation_error": change,
                "rotation_relative": relative,
                "step_ms": round(step_ms, 4),
                "inference_ms": round(latency, 4),
                "parameters": sum(p.numel() for p in trainee.parameters),
                "steps": steps,
                "epochs": round(steps * protocol.batch_size / len(data["train"]), 3),
                "batch_size": protocol.batch_size,
                "mode": mode,
                "train_seconds": round(trained, 2),
                "all_seconds": round(time.perf_counter() - began, 2),
                "card": torch.cuda.get_device_name() if cuda else f"{os.cpu_count()}-core CPU",
                "torch": torch.__version__,
            }
        )
    if cuda:
        # Graphs keep their memory until they are collected.
        del trainees, trainee
        gc.collect()
        torch.cuda.empty_cache()
    return rows
