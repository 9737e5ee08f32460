"""Time, memory and counted operations of one case."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring.kept_bytes import KeptBytes
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spherecost.subjects import SUBJECTS, Case, Made

COLUMNS = (
    "subject", "sweep", "S", "L", "size", "forward_ms", "train_ms", "forward_graph_ms",
    "train_graph_ms", "memory_gib", "forward_gflop", "train_gflop", "note", "card", "torch",
)  # fmt: skip
#: On GPUs: runs in a group that is timed, and groups, of which the median counts.
RUNS, GROUPS = 5, 3
WARM_UP = 2


def measure(case: Case, device: str, tiny: bool) -> dict[str, Any]:
    """Measure one case.

    Returns
    -------
    dict
        By :data:`COLUMNS` without the machine's. ``train`` is forward and backward; ``graph`` the
        replay of a CUDA graph (GPUs alone); ``memory_gib`` the peak of forward and backward above
        what is held before (GPUs), or what autograd keeps (CPU).
    """
    subject = SUBJECTS[case.subject]
    size = subject.sizes[tiny]
    cuda = device.startswith("cuda")
    row: dict[str, Any] = {
        "subject": case.subject, "sweep": case.sweep, "S": case.points, "L": case.lmax,
        "size": size, "note": "",
    }  # fmt: skip
    torch.manual_seed(0)
    row |= _operations(subject.make(case, size, device, tiny, False))
    torch.manual_seed(0)
    made = subject.make(case, size, device, tiny, True)
    made.module.train()

    def forward() -> None:
        with torch.no_grad():
            made.forward()

    def train() -> None:
        for parameter in made.module.parameters():
            parameter.grad = None
        made.forward().backward()

    row["forward_ms"] = _ms(forward, cuda)
    row["train_ms"] = _ms(train, cuda)
    row["memory_gib"] = _memory(made, train, cuda)
    if cuda:
        for name, run in (("forward_graph_ms", forward), ("train_graph_ms", train)):
            try:
                row[name] = _graph_ms(run)
            except RuntimeError as error:
                row["note"] = f"no CUDA graph: {str(error).splitlines()[0][:90]}"
                torch.cuda.synchronize()
    return row


def release(device: str) -> None:
    """Give memory of the last case back."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _operations(made: Made) -> dict[str, float]:
    """Operations of matrix products, 1e9: without what is computed twice to save memory."""
    for module in made.module.modules():
        # Neither fused kernels, which no counter knows, nor recomputation.
        for name in ("fused", "fused_branch", "recompute"):
            if hasattr(module, name):
                setattr(module, name, False)
    found = {}
    with sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            made.forward()
        found["forward_gflop"] = counter.get_total_flops() / 1e9
        with FlopCounterMode(display=False) as counter:
            made.forward().backward()
        found["train_gflop"] = counter.get_total_flops() / 1e9
    return found


def _ms(run: Callable[[], None], cuda: bool) -> float:
    """Milliseconds of a run, the median of groups."""
    for _ in range(WARM_UP if cuda else 1):
        run()
    times = []
    for _ in range(GROUPS if cuda else 1):
        if cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(RUNS):
                run()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / RUNS)
        else:
            started = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - started))
    return round(statistics.median(times), 4)


def _graph_ms(run: Callable[[], None]) -> float:
    """The same as a CUDA graph: no time goes into starting kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return _ms(graph.replay, True)


def _memory(made: Made, train: Callable[[], None], cuda: bool) -> float:
    """GiB of forward and backward."""
    if cuda:
        for parameter in made.module.parameters():
            parameter.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        train()
        torch.cuda.synchronize()
        return round((torch.cuda.max_memory_allocated() - held) / 2**30, 6)
    kept = KeptBytes(made.module)
    with kept.hooks():
        made.forward()
    return round(kept.total / 2**30, 6)
