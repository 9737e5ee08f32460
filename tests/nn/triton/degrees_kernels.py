"""Compare the fused gated activation of degrees with plain PyTorch; prints an error a line.

Runs on a GPU where there is one, else in Triton's interpreter on the CPU, which has to be chosen
before Triton is imported: hence a program of its own.
"""

from __future__ import annotations

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from est_ocp.nn import SteerableExperts, steerable_expert
from est_ocp.nn.gate_activation import GateActivation
from est_ocp.nn.triton import gated_degrees as kernels
from est_ocp.nn.triton.gated_degrees import DegreesLaunch, gated_degrees

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Nodes, degree, experts, channels of an expert: channels that are no block, or several; no blocks
#: of higher degrees; a single expert; and what a program has of them in the models.
CASES = {
    "odd": (5, 4, 2, 20),
    "scalars": (3, 0, 3, 40),
    "single": (4, 1, 1, 7),
    "wide": (2, 2, 3, 300),
    "model": (5, 4, 4, 256),
}


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    difference = (found.double() - wanted.double()).abs().max()
    return (difference / wanted.double().abs().max()).item()


def make_inputs(case: tuple[int, int, int, int], dtype: torch.dtype) -> list[torch.Tensor]:
    """Gate, pre-activations and blocks; the first two with a row or column more than is used."""
    nodes, lmax, experts, hidden = case
    torch.manual_seed(0)
    rows = (lmax + 2, *(2 * degree + 1 for degree in range(1, lmax + 1)))
    features = [torch.randn(nodes, r, experts * hidden, device=DEVICE).to(dtype) for r in rows]
    gate = torch.rand(nodes, experts + 1, device=DEVICE)
    gate[0, 1] = 0.0
    return [leaf.requires_grad_() for leaf in (gate, *features)]


def activate(function, gate, wide, *blocks) -> list[torch.Tensor]:
    """Call the kernel, or plain PyTorch in its place, on slices that are not contiguous."""
    return function(list(blocks), wide[:, 1:], gate[:, 1:])


def plain(blocks, pre_activation, gate) -> list[torch.Tensor]:
    """What the kernel computes."""
    lmax = pre_activation.shape[1] - 1
    weight = gate.repeat_interleave(pre_activation.shape[2] // gate.shape[1], dim=1)
    return GateActivation(lmax).by_degree(blocks, pre_activation, weight)


def compare(name: str, case: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """Print the errors of results and gradients."""
    inputs = make_inputs(case, dtype)
    precise = [leaf.detach().double().requires_grad_() for leaf in inputs]
    outs, expected = activate(gated_degrees, *inputs), activate(plain, *precise)
    assert all(out.dtype == dtype for out in outs)
    # Slices of one tensor, as those of joined degrees are.
    joined = torch.randn(case[0], (case[1] + 1) ** 2, case[2] * case[3], device=DEVICE).to(dtype)
    grads = joined.split([out.shape[1] for out in outs], dim=1)
    mine = torch.autograd.grad(outs, inputs, grads, retain_graph=True)
    theirs = torch.autograd.grad(expected, precise, [grad.double() for grad in grads])
    for found, value in zip((*outs, *mine), (*expected, *theirs), strict=True):
        assert found.shape == value.shape
    print(f"{name}_out {max(map(distance, outs, expected)):.3e}")
    for label, found, value in zip(("gate", "scalars"), mine, theirs, strict=False):
        print(f"{name}_{label} {distance(found, value):.3e}")
    print(f"{name}_blocks {max(map(distance, mine[2:], theirs[2:]), default=0.0):.3e}")
    # Of one result alone, all gradients of the others being zero.
    (alone,) = torch.autograd.grad(outs[-1], inputs[1], grads[-1])
    (wanted_alone,) = torch.autograd.grad(
        activate(plain, *precise)[-1], precise[1], grads[-1].double()
    )
    print(f"{name}_alone {distance(alone, wanted_alone):.3e}")


def module(dtype: torch.dtype) -> None:
    """Experts with the kernel, against those of float64."""
    torch.manual_seed(0)
    experts = SteerableExperts(16, 24, 3, 2).to(DEVICE)
    for name in ("bias_in", "bias_gate", "bias_out"):
        torch.nn.init.normal_(getattr(experts, name))
    plain_experts = SteerableExperts(16, 24, 3, 2, fused=False).to(DEVICE).double()
    plain_experts.load_state_dict(experts.state_dict())
    calls = []
    original = kernels.gated_degrees
    kernels.gated_degrees = lambda *a: calls.append(a) or original(*a)
    x, gate = torch.randn(6, 9, 16, device=DEVICE), torch.rand(6, 3, device=DEVICE)
    results = []
    for model, kind in ((experts, torch.float32), (plain_experts, torch.float64)):
        leaves = [leaf.to(kind).requires_grad_() for leaf in (x, gate)]
        low = dtype.itemsize == 2 and kind == torch.float32
        with torch.autocast(DEVICE, dtype=dtype, enabled=low):
            out = model(*leaves)
        leaves += model.parameters()
        results.append([out, *torch.autograd.grad(out.double().square().sum(), leaves)])
        assert len(calls) == 1
    kernels.gated_degrees = original
    names = ["out", "x", "gate", *(name for name, _ in experts.named_parameters())]
    for name, mine, theirs in zip(names, *results, strict=True):
        print(f"module_{name} {distance(mine, theirs):.3e}")


def compiled(dtype: torch.dtype) -> None:
    """Traced without graph breaks, for any number of nodes, the results are the same."""
    traced = torch.compile(gated_degrees, backend="aot_eager", dynamic=True, fullgraph=True)
    for lmax in (0, 2):
        for nodes in (2, 3):
            inputs = make_inputs((nodes, lmax, 2, 16), dtype)
            results = []
            for function in (gated_degrees, traced):
                outs = activate(function, *inputs)
                total = sum(out.float().square().sum() for out in outs)
                results.append([*outs, *torch.autograd.grad(total, inputs)])
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    print("compiled 0")


def no_nodes(dtype: torch.dtype) -> None:
    """Of no nodes there are results and gradients without elements."""
    inputs = [torch.zeros(0, *leaf.shape[1:], dtype=leaf.dtype, device=DEVICE).requires_grad_()
              for leaf in make_inputs((1, 1, 2, 8), dtype)]  # fmt: skip
    outs = activate(gated_degrees, *inputs)
    assert [tuple(out.shape) for out in outs] == [(0, 1, 16), (0, 3, 16)]
    gradients = torch.autograd.grad(sum(out.sum() for out in outs), inputs)
    assert [g.shape for g in gradients] == [leaf.shape for leaf in inputs]
    print("no_nodes 0")


def main(dtype: torch.dtype) -> None:
    """Compare in one precision."""
    torch.backends.cuda.matmul.allow_tf32 = True
    for name, case in CASES.items():
        compare(name, case, dtype)
    kernels.FORWARD = kernels.BACKWARD = DegreesLaunch(1, 64)
    compare("settings", CASES["wide"], dtype)
    if DEVICE == "cpu":
        steerable_expert.can_fuse = lambda x: x.dtype != torch.float64
    module(dtype)
    compiled(dtype)
    no_nodes(dtype)


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
