"""Times, rates and peak memory of steps; PyTorch alone, so that any model can be measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


def use_precision(precision: str) -> None:
    """Allow TF32 in products of float32 matrices, except for ``fp32``."""
    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = precision != "fp32"


def autocast(precision: str, device: str) -> torch.autocast:
    """Context of a forward pass in a precision."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bf16")


def synchronise(device: str) -> None:
    """Wait for the GPU, if there is one."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def timed(step: Callable[[Any], Any], data: Sequence[Any], steps: int, warm: int) -> list[float]:
    """Return the seconds of every step after the warm-up; ``data`` holds batches with ``pos``."""
    device = data[0].pos.device.type
    seconds = []
    for number in range(warm + steps):
        synchronise(device)
        start = time.perf_counter()
        step(data[number % len(data)])
        synchronise(device)
        if number >= warm:
            seconds.append(time.perf_counter() - start)
    return seconds


def spread_percent(values: Sequence[float]) -> float:
    """Distance of the quartiles over the median, in percent; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return 100.0 * (high - low) / statistics.median(values)


def idle_in_graphs() -> int:
    """Bytes that CUDA graphs hold and use in replays only, which PyTorch counts as free."""
    return sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()
        if tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0)
    )


def measure(
    step: Callable[[Any], Any], data: Sequence[Any], steps: int, warm: int
) -> dict[str, float | int]:
    """Measure a step on batches that are on the device.

    Parameters
    ----------
    step : callable
        Takes a batch.
    data : list
        Batches with ``pos`` and ``natoms``, taken in turns.
    steps, warm : int
        Timed steps, and those before them (compilation, autotuning).

    Returns
    -------
    dict
        ``atoms`` (mean of the batches), ``ms`` (median), ``atoms_s`` (median of the steps' own
        rates, since batches differ in size), ``spread_percent`` (of these rates), ``first_s``
        (the warm-up), on GPUs ``peak_gib`` (of the timed steps, all that PyTorch and its CUDA
        graphs hold).
    """
    cuda = data[0].pos.is_cuda
    start = time.perf_counter()
    timed(step, data, 0, warm)
    first = time.perf_counter() - start
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(step, data, steps, 0)
    sizes = [int(batch.natoms.sum()) for batch in data]
    rates = [sizes[number % len(sizes)] / value for number, value in enumerate(seconds)]
    out: dict[str, float | int] = {
        "atoms": round(statistics.mean(sizes), 1),
        "steps": steps,
        "ms": round(1e3 * statistics.median(seconds), 3),
        "atoms_s": round(statistics.median(rates), 1),
        "spread_percent": round(spread_percent(rates), 2),
        "first_s": round(first, 1),
    }
    if cuda:
        peak = torch.cuda.max_memory_allocated() + idle_in_graphs()
        out["peak_gib"] = round(peak / 2**30, 2)
    return out
