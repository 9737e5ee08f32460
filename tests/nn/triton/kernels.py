"""Compare the fused kernels with plain PyTorch; prints one error a line.

Runs on a GPU where there is one, else in Triton's interpreter on the CPU, which has to be chosen
before Triton is imported: hence a program of its own.
"""

from __future__ import annotations

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from est_ocp.nn.edge_rotation import edge_order, rotate_to_frames, sum_from_frames
from est_ocp.nn.triton.edge_rotation import from_frames, to_frames

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NODES, EDGES, ROWS, COEFFICIENTS, CHANNELS = 4, 9, 5, 9, 20


def report(name: str, out: torch.Tensor, expected: torch.Tensor) -> None:
    """Print the largest difference over the largest value."""
    error = (out.double() - expected.double()).abs().max() / expected.double().abs().max()
    print(f"{name} {error.item():.3e}")


def compare(name: str, fused, plain, x: torch.Tensor) -> None:
    """Compare results and gradients of two functions of ``x``."""
    x = x.requires_grad_(True)
    out, expected = fused(x), plain(x)
    report(name, out, expected)
    grad = torch.randn_like(expected)
    (mine,) = torch.autograd.grad(out, x, grad.to(out.dtype))
    (theirs,) = torch.autograd.grad(expected, x, grad)
    report(f"{name}_gradient", mine, theirs)


def main(dtype: torch.dtype) -> None:
    """Compare both operations in one precision."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    kind = {"device": DEVICE, "dtype": dtype}
    edge_index = torch.randint(0, NODES - 1, (2, EDGES), device=DEVICE)
    order = edge_order(edge_index, NODES)
    wigner = torch.randn(EDGES, ROWS, COEFFICIENTS, **kind)
    compare(
        "to_frames",
        lambda x: to_frames(x, wigner, edge_index, *order),
        lambda x: rotate_to_frames(x, wigner, edge_index),
        torch.randn(NODES, COEFFICIENTS, CHANNELS, **kind),
    )
    last = (edge_index[1:], order.permutation[1:], order.offsets[1:])
    compare(
        "from_frames",
        lambda messages: from_frames(messages, wigner, *last),
        lambda messages: sum_from_frames(messages, wigner, edge_index, NODES),
        torch.randn(EDGES, ROWS, CHANNELS, **kind),
    )
    none = torch.empty(2, 0, dtype=torch.long, device=DEVICE)
    empty = edge_order(none, NODES)
    out = from_frames(
        wigner[:0, :, :CHANNELS], wigner[:0], none[1:], empty.permutation[1:], empty.offsets[1:]
    )
    print(f"no_edges {out.abs().max().item():.3e}")


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
