"""Compare the fused parts of GotenNet's attention with plain ones; prints one error a line.

Runs on a GPU where there is one, else in Triton's interpreter on the CPU, which has to be chosen
before Triton is imported: hence a program of its own.
"""

from __future__ import annotations

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from est_ocp.nn.edge_rotation import edge_order
from est_ocp.nn.gotennet import GATA, gata, unit_harmonics
from est_ocp.nn.scatter import scatter_sum
from est_ocp.nn.triton.tensor_messages import tensor_messages
from est_ocp.nn.triton.tensor_products import tensor_products

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NODES, EDGES = 5, 14


def report(name: str, out: torch.Tensor, expected: torch.Tensor) -> None:
    """Print the largest difference over the largest value."""
    error = (out.double() - expected.double()).abs().max() / expected.double().abs().max()
    print(f"{name} {error.item():.3e}")


def compare(name: str, fused, plain, inputs: list[torch.Tensor], words: tuple[str, ...]) -> None:
    """Results and gradients; the plain function is called in double precision."""
    inputs = [x.requires_grad_(True) for x in inputs]
    double = [x.detach().double().requires_grad_(True) for x in inputs]
    out, expected = fused(*inputs), plain(*double)
    report(name, out, expected)
    grad = torch.randn_like(expected)
    mine = torch.autograd.grad(out, inputs, grad.to(out.dtype))
    theirs = torch.autograd.grad(expected, double, grad)
    for word, a, b in zip(words, mine, theirs, strict=True):
        report(f"{name}_{word}", a, b)


def main(dtype: torch.dtype) -> None:
    """Compare both operations, for one and two degrees and two widths."""
    torch.manual_seed(0)
    for lmax, channels, heads in ((1, 6, 3), (2, 136, 4)):
        attention = GATA(channels, lmax, heads).to(DEVICE)
        # The last node has no edges.
        edge_index = torch.randint(0, NODES - 1, (2, EDGES), device=DEVICE)
        order = edge_order(edge_index, NODES)
        vec = torch.randn(EDGES, 3, device=DEVICE)
        harmonics = unit_harmonics(vec, vec.norm(dim=1), lmax).to(dtype)
        fade = torch.rand(EDGES, device=DEVICE)
        kind = {"device": DEVICE, "dtype": dtype}
        width = (1 + 2 * lmax) * channels
        wide = torch.randn(EDGES, width + 3, **kind)
        x = torch.randn(NODES, (lmax + 1) ** 2, channels, **kind)
        inputs = [wide, torch.randn(NODES, width, **kind), torch.randn(NODES, width, **kind)]
        inputs += [torch.rand(EDGES, heads, device=DEVICE), x]

        def fused(wide, *rest, edges=(harmonics, fade, edge_index), order=order):
            return tensor_messages(wide[:, 3:], *rest, *edges, *order)

        def plain(wide, *rest, edges=(harmonics, fade, edge_index), layer=attention):
            harmonics, fade, index = edges
            messages = layer._messages(wide[:, 3:], *rest, harmonics.double(), fade.double(), index)
            return scatter_sum(messages, index[1], NODES)

        words = ("spatial", "gate", "value", "weights", "features")
        compare(f"messages_{lmax}", fused, plain, inputs, words)

        def fused_products(q, k, edges=(harmonics, edge_index), order=order):
            return tensor_products(q, k, *edges, *order)

        def plain_products(q, k, edges=(harmonics, edge_index), layer=attention):
            return layer._change_of_length(q, k, *edges[1], edges[0].double())

        steerable = [torch.randn(NODES, (lmax + 1) ** 2 - 1, channels, **kind) for _ in range(2)]
        compare(f"products_{lmax}", fused_products, plain_products, steerable, ("query", "key"))
        none = edge_index[:, :0]
        empty = edge_order(none, NODES)
        nothing = fused(
            *(v[:0] if v.shape[0] == EDGES else v for v in inputs),
            edges=(harmonics[:0], fade[:0], none), order=empty,
        )  # fmt: skip
        print(f"no_edges_{lmax} {nothing.abs().max().item()}")
        edges = (edge_index, harmonics.float(), fade)
        state = [torch.randn(NODES, (lmax + 1) ** 2, channels), torch.randn(EDGES, channels)]
        whole(f"layer_{lmax}", attention.eval(), [x.to(DEVICE) for x in state], edges, order)


def whole(name: str, attention: GATA, state: list[torch.Tensor], edges: tuple, order) -> None:
    """A whole layer's results and gradients, with the kernels and without, in float32."""
    gata.can_fuse = lambda x: True
    found = []
    for given in (order, None):
        inputs = [x.clone().requires_grad_(True) for x in state]
        x, t = attention(*inputs, *edges, given)
        loss = x.square().sum() + t.square().sum()
        grads = torch.autograd.grad(loss, [*inputs, *attention.parameters()])
        found.append([x, t, *grads])
    errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*found, strict=True)]
    print(f"{name} {max(errors):.3e}")


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
