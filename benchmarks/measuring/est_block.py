"""Counts of the EST update block's work, for the least time that a card could take."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

#: Numbers of nodes that are counted: what is moved is a part for the weights and one by node.
COUNTED_NODES = (2, 4)


@dataclass(frozen=True)
class BlockWork:
    """Work of one call.

    Attributes
    ----------
    operations : float
        Two for each multiply-add of a matrix product.
    least_bytes : float
        Input, output and weights, and their gradients, each read or written once: what a kernel
        that keeps all else to itself would move.
    staged_bytes : float
        Operands and results of every matrix product, attention's logits among them, everything
        else being part of one.
    """

    operations: float
    least_bytes: float
    staged_bytes: float

    def floors(self, tflop_s: float, gb_s: float) -> dict[str, float]:
        """Least milliseconds by arithmetic, by least bytes, and by staged bytes."""
        return {
            "arithmetic_ms": round(1e3 * self.operations / (tflop_s * 1e12), 5),
            "memory_ms": round(1e3 * self.least_bytes / (gb_s * 1e9), 5),
            "staged_ms": round(1e3 * self.staged_bytes / (gb_s * 1e9), 5),
        }


class _ProductElements(TorchDispatchMode):
    """Count the elements that matrix products read and write."""

    PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self.PRODUCTS:
            self.elements += sum(_stored(a) for a in (out, *args) if isinstance(a, torch.Tensor))
        return out


def _stored(x: torch.Tensor) -> int:
    """Elements of a tensor, those of a repeated one counted once."""
    repeats = zip(x.shape, x.stride(), strict=True)
    return math.prod(size for size, stride in repeats if stride)


def count(block: nn.Module, nodes: int, element_size: int, backward: bool) -> BlockWork:
    """Count the work of an EST update block by running it on a few nodes, on the CPU.

    Parameters
    ----------
    block : ESTUpdateBlock
        Left as it is.
    nodes : int
        Nodes of a call.
    element_size : int
        Bytes of an element.
    backward : bool
        Forward and backward, or forward alone.
    """
    spare = copy.deepcopy(block).to("cpu").train()
    for module in spare.modules():
        # What is computed twice to save memory is no part of the least work.
        if hasattr(module, "recompute"):
            module.recompute = False
    few, more = COUNTED_NODES
    first, second = (_run(spare, number, backward) for number in COUNTED_NODES)
    operations, elements = (
        low + (high - low) * (nodes - few) / (more - few)
        for low, high in zip(first, second, strict=True)
    )
    weights = sum(p.numel() for p in block.parameters())
    features = nodes * (block.lmax + 1) ** 2 * block.channels
    # Forward: x, y, weights. Backward: x, grad y, weights in; grad x, grad weights out.
    least = 2 * features + weights + backward * (3 * features + 2 * weights)
    return BlockWork(operations, element_size * least, element_size * elements)


def _run(block: nn.Module, nodes: int, backward: bool) -> tuple[int, int]:
    """Operations of the matrix products, and elements that they read and write."""
    x = torch.randn(nodes, (block.lmax + 1) ** 2, block.channels, requires_grad=backward)
    traffic = _ProductElements()
    with (
        # As plain products, which the counters know on every machine.
        sdpa_kernel(SDPBackend.MATH),
        torch.set_grad_enabled(backward),
        FlopCounterMode(display=False) as flops,
        traffic,
    ):
        out = block(x)
        if backward:
            out.backward(torch.ones_like(out))
    return flops.get_total_flops(), traffic.elements
