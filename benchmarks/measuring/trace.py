"""Kernels of a profiled step, from PyTorch's trace: times, operands, and parts of the model."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from measuring.kernel_counts import operations, result_elements
from measuring.timing import synchronise

#: Bytes of an element by the trace's name of its type; float32 for lists, which have none.
ELEMENT_SIZES = {
    "c10::BFloat16": 2, "c10::Half": 2, "double": 8, "long": 8, "long int": 8, "bool": 1,
    "unsigned char": 1,
}  # fmt: skip

#: Parts by the name of a kernel or of the operator that started it; the first that fits counts.
RULES = (
    ("optimiser", r"multi_tensor|foreach|adam"),
    ("elementwise, compiled", r"^triton_(poi|red|per|for)_"),
    ("S2 activation", r"on_points|s2_act"),
    ("edge rotations", r"est_ocp::.*(frames|orders|edge|rotat)|_frames_|_edge_"),
    ("messages of hosts", r"est_ocp::(tensor|path)_"),
    ("EST experts", r"expert|silu_on_functions|gated_degrees"),
    ("EST norms", r"functions_norm"),
    ("EST attention", r"scaled_dot_product|sdpa|flash|fmha|attention|mha_"),
    ("GEMMs", r"gemm|nvjet|cutlass|cublas|xmma|wgmma|splitk|triton_tem|aten::(add|b|badd)?mm"),
)  # fmt: skip
OTHER = "other"


@dataclass(frozen=True)
class Kernel:
    """One launch of a kernel, or on the CPU one call of an operator.

    Attributes
    ----------
    name, operator : str
        Of the kernel, and of what launched it.
    ms : float
        Duration.
    dims : tuple
        Shapes of the operator's arguments.
    types : tuple of str
        Their element types.
    counted : bool
        Whether the operator's work counts as this kernel's; it does for the longest one.
    """

    name: str
    operator: str
    ms: float
    dims: tuple = ()
    types: tuple = ()
    counted: bool = True

    @property
    def gflop(self) -> float:
        """Two operations a multiply-add, 10^9."""
        return operations(self.operator, self.dims) / 1e9 if self.counted else 0.0

    @property
    def gbyte(self) -> float:
        """Operands and result, each counted once, 10^9 bytes."""
        if not self.counted:
            return 0.0
        sizes = [
            _elements(shape) * ELEMENT_SIZES.get(kind, 4)
            for shape, kind in zip(self.dims, self.types, strict=False)
        ]
        kind = self.types[0] if self.types else ""
        results = result_elements(self.operator, self.dims) * ELEMENT_SIZES.get(kind, 4)
        return (sum(sizes) + results) / 1e9


def _elements(shape: Sequence[Any]) -> int:
    """Elements of a tensor, or of a list of tensors; scalars count nothing."""
    if shape and isinstance(shape[0], list | tuple):
        return sum(_elements(inner) for inner in shape)
    return math.prod(shape) if shape else 0


@dataclass(frozen=True)
class Shapes:
    """Sizes by which matrix products are told apart.

    Attributes
    ----------
    edges : int
        Edges of the batch.
    sphere_rows : int
        Atoms times points of the sphere.
    """

    edges: int
    sphere_rows: int

    def kind(self, kernel: Kernel) -> str:
        """Edges, points of the sphere, or neither."""
        sizes = {size for shape in kernel.dims for size in shape if isinstance(size, int)}
        if any(size and size % self.edges == 0 for size in sizes):
            return "GEMMs on edges"
        if any(size and size % self.sphere_rows == 0 for size in sizes):
            return "GEMMs on the sphere"
        return "GEMMs on nodes"


def part_of(kernel: Kernel, shapes: Shapes) -> str:
    """Part of the model that a kernel belongs to."""
    for part, pattern in RULES:
        texts = (kernel.name, kernel.operator)
        if any(re.search(pattern, text, re.IGNORECASE) for text in texts):
            return shapes.kind(kernel) if part == "GEMMs" else part
    return OTHER


def profiled(step: Callable[[], Any], device: str) -> list[Kernel]:
    """Run a step once under the profiler.

    Parameters
    ----------
    step : callable
        Warmed up.
    device : str
        ``cuda``: kernels of the GPU; else operators of the CPU.
    """
    cuda = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    synchronise(device)
    with profile(activities=activities, record_shapes=True) as record:
        step()
        synchronise(device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        record.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    return gpu_kernels(events) if cuda else cpu_kernels(events)


def gpu_kernels(events: Iterable[dict[str, Any]]) -> list[Kernel]:
    """Kernels with the operators that started them."""
    operators, launched = {}, {}
    for event in events:
        category, arguments = event.get("cat"), event.get("args", {})
        key = arguments.get("External id")
        if category == "cpu_op":
            operators[key] = event
        elif category in ("kernel", "gpu_memcpy", "gpu_memset"):
            # Without an operator: a group of its own.
            group = ("alone", id(event)) if key is None else key
            launched.setdefault(group, []).append(event)
    out = []
    for key, kernels in launched.items():
        operator = operators.get(key, {})
        kernels.sort(key=lambda event: -event["dur"])
        for number, event in enumerate(kernels):
            name, ms = operator.get("name", ""), event["dur"] / 1e3
            out.append(Kernel(event["name"], name, ms, *_operands(operator), number == 0))
    return out


def cpu_kernels(events: Iterable[dict[str, Any]]) -> list[Kernel]:
    """Operators, each with the time outside those that it calls."""
    threads: dict[Any, list[dict[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "cpu_op":
            threads.setdefault(event["tid"], []).append(event)
    out = []
    for calls in threads.values():
        calls.sort(key=lambda event: (event["ts"], -event["dur"]))
        own = [event["dur"] for event in calls]
        within: list[int] = []
        for number, event in enumerate(calls):
            while within and event["ts"] >= calls[within[-1]]["ts"] + calls[within[-1]]["dur"]:
                within.pop()
            if within:
                own[within[-1]] -= event["dur"]
            within.append(number)
        for event, time in zip(calls, own, strict=True):
            name = event["name"]
            out.append(Kernel(name, name, max(time, 0.0) / 1e3, *_operands(event)))
    return out


def _operands(operator: dict[str, Any]) -> tuple[tuple, tuple]:
    arguments = operator.get("args", {})
    return tuple(arguments.get("Input Dims", ())), tuple(arguments.get("Input type", ()))


def summary(kernels: Iterable[Kernel], shapes: Shapes) -> list[dict[str, Any]]:
    """Kernels of one name added up, those that take longest first."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for kernel in kernels:
        key = (part_of(kernel, shapes), kernel.name[:120], kernel.operator[:80])
        row = rows.setdefault(
            key, dict(zip(("part", "kernel", "operator"), key, strict=True))
            | {"calls": 0, "ms": 0.0, "gflop": 0.0, "gbyte": 0.0},
        )  # fmt: skip
        row["calls"] += 1
        for name in ("ms", "gflop", "gbyte"):
            row[name] += getattr(kernel, name)
    ordered = sorted(rows.values(), key=lambda row: -row["ms"])
    return [{n: round(v, 5) if isinstance(v, float) else v for n, v in r.items()} for r in ordered]
