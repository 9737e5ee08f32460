"""Compare the fused spherical experts with plain PyTorch; prints one error a line.

Runs on a GPU where there is one, else in Triton's interpreter on the CPU, which has to be chosen
before Triton is imported: hence a program of its own.
"""

from __future__ import annotations

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from est_ocp.nn import spherical_expert
from est_ocp.nn.spherical_expert import SphericalExperts
from est_ocp.nn.triton.spherical_experts import (
    ExpertsLaunch,
    backward,
    forward,
    spherical_experts,
    spherical_experts_backward,
)
from est_ocp.nn.triton.tanh import tanh_kind

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("x", "gate", "weight_in", "bias_in", "weight_out")
#: Nodes, points, channels, hidden channels and experts: odd sizes, and such that need no masks.
SIZES = {"odd": (3, 11, 20, 37, 3), "even": (2, 24, 16, 64, 2), "single": (2, 9, 9, 16, 1)}


def report(name: str, out: torch.Tensor, expected: torch.Tensor) -> None:
    """Print the largest difference over the largest value."""
    error = (out.double() - expected.double()).abs().max() / expected.double().abs().max()
    print(f"{name} {error.item():.3e}")


def leaves(module: SphericalExperts) -> tuple[torch.Tensor, ...]:
    """The kernel's arguments after features and gate."""
    return (
        module.weight_in.flatten(0, 1).detach(),
        module.bias_in.flatten().detach(),
        module.weight_out.flatten(1).detach(),
    )


def compare(name: str, dtype: torch.dtype) -> None:
    """Result and all gradients, of the operation and in several slabs, against the module."""
    nodes, points, channels, hidden, experts = SIZES[name]
    kind = {"device": DEVICE, "dtype": torch.float64}
    module = SphericalExperts(channels, hidden, experts, bias=False, fused=False).to(**kind)
    torch.nn.init.normal_(module.bias_in)
    x = torch.randn(nodes, points, channels, **kind).to(dtype).double().requires_grad_(True)
    gate = torch.rand(nodes, experts, **kind).float().double().requires_grad_(True)
    expected = module(x, gate)
    grad = torch.randn_like(expected).to(dtype).double()
    wanted = torch.autograd.grad(expected, [x, gate, *module.parameters()], grad)
    wanted = [g.reshape(s.shape) for g, s in zip(wanted, (x, gate, *leaves(module)), strict=True)]

    name = f"{str(dtype).removeprefix('torch.')}_{name}"
    low = x.detach().to(dtype).requires_grad_(True)
    rest = [t.detach().float().requires_grad_(True) for t in (gate, *leaves(module))]
    out = spherical_experts(low, *rest)
    assert out.dtype == dtype
    report(f"{name}_out", out, expected)
    found = torch.autograd.grad(out, [low, *rest], grad.to(dtype))
    assert [g.dtype for g in found] == [dtype, *[torch.float32] * 4]
    for argument, mine, theirs in zip(NAMES, found, wanted, strict=True):
        report(f"{name}_{argument}", mine, theirs)

    module = module.float()
    module.fused = True
    inputs = [x.detach().float().requires_grad_(True), rest[0]]
    with torch.autocast(DEVICE, dtype=dtype, enabled=dtype != torch.float32):
        out = module(*inputs)
    assert out.dtype == dtype
    report(f"{name}_module_out", out, expected)
    found = torch.autograd.grad(out, [*inputs, *module.parameters()], grad.to(dtype))
    assert {g.dtype for g in found} == {torch.float32}
    for argument, mine, theirs in zip(NAMES, found, wanted, strict=True):
        report(f"{name}_module_{argument}", mine, theirs.reshape(mine.shape))

    small = ExpertsLaunch(rows=16, hidden=16, warps=4, stages=1, tanh=tanh_kind())
    report(f"{name}_small_out", forward(low, *rest, small), expected)
    found = backward(grad.to(dtype), low.detach(), *rest, small, slab_rows=32)
    for argument, mine, theirs in zip(NAMES, found, wanted, strict=True):
        report(f"{name}_small_{argument}", mine, theirs)


def compiled(dtype: torch.dtype) -> None:
    """Traced without graph breaks, for any number of nodes, the result is the same."""
    traced = torch.compile(spherical_experts, backend="aot_eager", dynamic=True, fullgraph=True)
    rest = [torch.rand(s, device=DEVICE, requires_grad=True) for s in ((32, 8), (32,), (8, 32))]
    worst = 0.0
    for nodes in (2, 3):
        x = torch.randn(nodes, 8, 8, device=DEVICE).to(dtype).requires_grad_(True)
        arguments = [x, torch.rand(nodes, 2, device=DEVICE, requires_grad=True), *rest]
        results = []
        for function in (spherical_experts, traced):
            out = function(*arguments)
            results.append([out, *torch.autograd.grad(out.float().square().sum(), arguments)])
        worst = max([worst, *((a - b).abs().max().item() for a, b in zip(*results, strict=True))])
    print(f"{str(dtype).removeprefix('torch.')}_compiled {worst:.3e}")


def no_nodes(dtype: torch.dtype) -> None:
    """Empty inputs give an empty result and zero gradients."""
    arguments = [torch.rand(s, device=DEVICE) for s in ((0, 2), (16, 8), (16,), (8, 16))]
    x = torch.empty(0, 4, 8, device=DEVICE, dtype=dtype)
    out = spherical_experts(x, *arguments)
    assert out.shape == x.shape
    grads = spherical_experts_backward(out, x, *arguments)
    total = sum(g.abs().sum().item() for g in grads)
    print(f"{str(dtype).removeprefix('torch.')}_no_nodes {total:.3e}")


def main(dtype: torch.dtype) -> None:
    """Compare in one precision."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    for name in SIZES:
        compare(name, dtype)
    no_nodes(dtype)
    compiled(dtype)


if __name__ == "__main__":
    spherical_expert.can_fuse = lambda x: True
    for precision in sys.argv[1:]:
        main(getattr(torch, precision))
