"""Measurements of this project's models, row by row."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
from slabs import batches, random_slab

from measuring.est_block import count
from measuring.machine import facts, roofs
from measuring.models import build, compile_layers, inference_step, training_step, use_graphs
from measuring.plan import Row
from measuring.timing import autocast, measure, use_precision

#: Batches that steps take in turns, and the seed of their slabs.
NUM_BATCHES, SEED = 4, 1
#: Atoms of the single system whose latency is measured, and calls before: a size is captured as a
#: CUDA graph when it has been met several times.
SINGLE, WARM_SINGLE = (75, 80), 4 * NUM_BATCHES


@dataclass(frozen=True)
class Settings:
    """How rows are measured.

    Attributes
    ----------
    device : {"cuda", "cpu"}
    steps : int
        Timed steps of a row.
    est, baseline : tuple of str
        Config of the group `model`, then Hydra overrides.
    deadline : float
        ``time.time()`` after which no further row is begun.
    """

    device: str
    steps: int
    est: tuple[str, ...]
    baseline: tuple[str, ...]
    deadline: float


def structures(size: int) -> list[AtomicData]:
    """Return the batches of ``size`` slabs; a size of 1 asks for 75 to 80 atoms."""
    if size > 1:
        return batches(size, NUM_BATCHES, seed=SEED)
    rng = np.random.default_rng(SEED)
    found: list[AtomicData] = []
    while len(found) < NUM_BATCHES:
        slab = random_slab(rng)
        if SINGLE[0] <= int(slab.natoms) <= SINGLE[1]:
            found.append(atomicdata_list_to_batch([slab]))
    return found


class OwnModels:
    """Models and batches of rows, each made once.

    Parameters
    ----------
    settings : Settings
        Of all rows.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._models: dict[str, torch.nn.Module] = {}
        self._batches: dict[int, list[AtomicData]] = {}
        self._roofs: dict[str, dict[str, float]] = {}

    def figures(self, row: Row) -> dict[str, Any]:
        """Measure one row."""
        use_precision(row.precision)
        if row.mode == "roof":
            return self._roof(row.precision)
        if row.mode.startswith("block"):
            return self._block(row, backward=row.mode != "block_forward")
        device, steps = self.settings.device, self.settings.steps
        model = self._model(row.model)
        model.train(row.mode == "train")
        compile_layers(model, row.compiled)
        use_graphs(model, row.graphs)
        make = training_step if row.mode == "train" else inference_step
        step = make(model, row.precision, device)
        try:
            warm = WARM_SINGLE if row.batch == 1 else NUM_BATCHES
            return measure(step, self._data(row.batch), steps, warm)
        finally:
            use_graphs(model, False)
            model.zero_grad(set_to_none=True)

    def _roof(self, precision: str) -> dict[str, float]:
        if precision not in self._roofs:
            self._roofs[precision] = roofs(precision, self.settings.device)
        return self._roofs[precision]

    def _data(self, size: int) -> list[AtomicData]:
        if size not in self._batches:
            self._batches = {size: [b.to(self.settings.device) for b in structures(size)]}
        return self._batches[size]

    def _model(self, name: str) -> torch.nn.Module:
        if name not in self._models:
            torch.manual_seed(0)
            config, *overrides = self.settings.est if name == "est" else self.settings.baseline
            self._models[name] = build(config, overrides, self.settings.device)
        return self._models[name]

    def _block(self, row: Row, backward: bool) -> dict[str, Any]:
        """The first layer's EST block on random features of as many nodes as a batch has."""
        device = self.settings.device
        model = self._model("est").train(backward)
        compile_layers(model, row.compiled)
        block = model.backbone.blocks[0].update
        nodes = int(self._data(row.batch)[0].natoms.sum())
        shape = (nodes, (block.lmax + 1) ** 2, block.channels)
        x = torch.randn(shape, device=device, requires_grad=backward)
        gradient = torch.randn(shape, device=device)

        weights = tuple(block.parameters())

        def step(_: Any) -> None:
            with torch.set_grad_enabled(backward), autocast(row.precision, device):
                out = model.backbone.call_layer(block, x)
            if backward:
                torch.autograd.grad(out, (x, *weights), gradient.to(out.dtype))

        if row.graphs and x.is_cuda:
            step = captured(step)
        data = [SimpleNamespace(pos=x, natoms=torch.tensor([nodes]))]
        found = measure(step, data, 2 * self.settings.steps, warm=NUM_BATCHES)
        size = 2 if row.precision == "bf16" else 4
        limits = self._roof(row.precision)
        work = count(block, nodes, size, backward)
        return found | work.floors(limits["roof_tflop_s"], limits["roof_gb_s"])


def captured(step: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return the replay of a step as a CUDA graph."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step(None)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        step(None)
    return lambda _: graph.replay()


def measured(rows: Sequence[Row], settings: Settings) -> Iterator[dict[str, Any]]:
    """Measure rows; one that fails says so in its column ``error``, and the next one begins.

    Yields
    ------
    dict
        Row, figures and machine.
    """
    models = OwnModels(settings)
    machine = facts(settings.device)
    for row in rows:
        # Both on GPUs only.
        on_gpu = settings.device == "cuda"
        how = {"compiled": row.compiled and on_gpu, "graphs": row.graphs and on_gpu}
        record = asdict(row) | {"name": row.name} | how | machine
        if time.time() > settings.deadline:
            yield record | {"error": "no time left"}
            continue
        try:
            found = models.figures(row)
        except Exception as error:
            found = {"error": described(error)}
        if settings.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
        yield record | found


def described(error: Exception) -> str:
    """One short line about a failure."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:160]}"
