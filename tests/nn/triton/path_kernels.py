"""Compare fused tensor products with plain ones; prints one error a line.

Runs on a GPU where there is one, else in Triton's interpreter on the CPU, which has to be chosen
before Triton is imported: hence a program of its own.
"""

from __future__ import annotations

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from est_ocp.nn.equiformer import (
    DepthwiseTensorProduct,
    EquiformerAttention,
    IrrepsLayout,
    depthwise_tensor_product,
)
from est_ocp.nn.equiformer.edge_harmonics import edge_harmonics

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EDGES = 37
#: Irreps, degree of the harmonics, degrees of the result; widths that fill no block, an input
#: degree without paths, a result in one degree alone.
CASES = {
    "full": ("130x0e+17x1e+6x2e", 2, (0, 1, 2)),
    "first": ("20x0e+9x1e", 1, (0, 1)),
    "scalars": ("8x0e+4x1e+2x2e", 1, (0,)),
}


def report(name: str, out: torch.Tensor, expected: torch.Tensor) -> None:
    """Print the largest difference over the largest value."""
    error = (out.double() - expected.double()).abs().max() / expected.double().abs().max()
    print(f"{name} {error.item():.3e}")


def compare(name: str, case: tuple, dtype: torch.dtype, weighted: bool) -> None:
    """Results and gradients of both ways, and those of no edges."""
    irreps, lmax_sh, degrees = case
    layout = IrrepsLayout(irreps)
    product = DepthwiseTensorProduct(layout, lmax_sh, degrees).to(DEVICE)
    vec = torch.randn(EDGES, 3, device=DEVICE)
    edge_sh = edge_harmonics(vec, vec.norm(dim=1), lmax_sh)
    # Views of one wider tensor, as attention gives them.
    flat = torch.randn(EDGES, layout.dim, device=DEVICE, dtype=dtype, requires_grad=True)
    weights = torch.randn(EDGES, product.num_weights, device=DEVICE, dtype=dtype)
    weights = weights.requires_grad_(True) if weighted else None
    inputs = [flat] if weights is None else [flat, weights]

    def blocks(x: torch.Tensor) -> list[torch.Tensor]:
        parts = x.split(layout.sizes, dim=1)
        return [p.unflatten(1, (-1, w)) for p, w in zip(parts, layout.widths, strict=True)]

    fused = product.multiply_fused(blocks(flat), edge_sh, weights)
    double = [x.detach().double().requires_grad_(True) for x in inputs]
    plain = product.double()(blocks(double[0]), edge_sh.double(), *(double[1:] or [None]))
    grads = [torch.randn_like(block) for block in plain]
    mine = torch.autograd.grad(fused, inputs, [g.to(dtype) for g in grads])
    theirs = torch.autograd.grad(plain, double, grads)
    for degree, a, b in zip(degrees, fused, plain, strict=True):
        report(f"{name}_{degree}", a, b)
    for word, a, b in zip(("features", "weights"), mine, theirs, strict=False):
        report(f"{name}_gradient_{word}", a, b)
    none = product.float().multiply_fused(
        [b[:0] for b in blocks(flat)], edge_sh[:0], None if weights is None else weights[:0]
    )
    print(f"{name}_no_edges {sum(block.numel() for block in none)}")


def whole(name: str, nonlinear: bool) -> None:
    """A whole attention's result and gradients, with the kernels and without, in float32."""
    layout, nodes = IrrepsLayout("12x0e+5x1e+3x2e"), 6
    attention = EquiformerAttention(
        layout, layout, layout, IrrepsLayout("4x0e+2x1e+1x2e"), 2, 2, [4, 8], nonlinear
    )
    attention = attention.to(DEVICE)
    vec = torch.randn(EDGES, 3, device=DEVICE)
    edges = (
        torch.randint(0, nodes, (2, EDGES), device=DEVICE),
        edge_harmonics(vec, vec.norm(dim=1), 2),
        torch.randn(EDGES, 4, device=DEVICE),
    )
    flat = torch.randn(nodes, layout.dim, device=DEVICE)
    found = []
    for fuses in (True, False):
        depthwise_tensor_product.can_fuse = lambda x, fuses=fuses: fuses
        x = flat.clone().requires_grad_(True)
        out = attention(x, *edges)
        grads = torch.autograd.grad(out.square().sum(), [x, *attention.parameters()])
        found.append([out, *grads])
    errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*found, strict=True)]
    print(f"{name} {max(errors):.3e}")


def main(dtype: torch.dtype) -> None:
    """Compare all cases in one precision."""
    torch.manual_seed(0)
    for name, case in CASES.items():
        compare(name, case, dtype, weighted=True)
        compare(f"{name}_unweighted", case, dtype, weighted=False)
    whole("attention", nonlinear=True)
    whole("linear_attention", nonlinear=False)


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
