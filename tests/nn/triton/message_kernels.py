"""Compare whole EST message blocks with and without the fused kernel; prints an error a line.

Runs on a GPU where there is one, else in Triton's interpreter on the CPU, which has to be chosen
before Triton is imported: hence a program of its own.
"""

from __future__ import annotations

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from est_ocp.nn import ESTMessageBlock, edge_rows, steerable_expert
from est_ocp.sphere import make_rule
from tests.nn.est_message_graph import make_block, make_edges

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

VARIANTS = {
    "default": {},
    "heads": {"num_heads": 2},
    "other_points": {"rule": make_rule("design", 32)},
    "spherical_alone": {"num_steerable_experts": 0, "num_spherical_experts": 1},
    "least_squares": {"inverse": "least_squares"},
}


def run(block: ESTMessageBlock, dtype: torch.dtype) -> list[torch.Tensor]:
    """Result and gradients of the features and of all parameters."""
    own = next(block.parameters()).dtype
    x, index, *rest = make_edges(edges=7).arguments()
    x = x.to(DEVICE, own).requires_grad_()
    rest = [tensor.to(DEVICE, own) for tensor in rest]
    with torch.autocast(DEVICE, dtype=dtype, enabled=dtype.itemsize == 2):
        out = block(x, index.to(DEVICE), *rest)
    weights = torch.linspace(-1.0, 2.0, out.numel(), device=DEVICE).view_as(out).to(out.dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), [x, *block.parameters()])]


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def main(dtype: torch.dtype) -> None:
    """Compare in one precision: with the kernel, and without in the same precision, to float64."""
    torch.backends.cuda.matmul.allow_tf32 = True
    if DEVICE == "cpu":
        edge_rows.can_fuse = steerable_expert.can_fuse = lambda *_: True
    for name, options in VARIANTS.items():

        def make(kind: torch.dtype, fused: bool, options: dict = options) -> ESTMessageBlock:
            return make_block(dtype=kind, fused_kernels=fused, **options).to(DEVICE)

        wanted = run(make(torch.float64, False), torch.float64)
        fused = make(torch.float32, True)
        names = ["out", "x", *(n for n, _ in fused.named_parameters())]
        results = run(fused, dtype), run(make(torch.float32, False), dtype)
        for label, mine, plain, reference in zip(names, *results, wanted, strict=True):
            assert mine.dtype == plain.dtype
            print(f"{name}.{label} {distance(mine, reference):.3e}")
            print(f"plain.{name}.{label} {distance(plain, reference):.3e}")


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
