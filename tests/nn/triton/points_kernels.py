"""Compare the fused kernels on the points of a sphere with plain PyTorch; prints an error a line.

Runs on a GPU where there is one, else in Triton's interpreter on the CPU, which has to be chosen
before Triton is imported: hence a program of its own.
"""

from __future__ import annotations

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from est_ocp.nn.s2_activation import plain_silu_on_points
from est_ocp.nn.triton import silu_on_points as kernels
from est_ocp.nn.triton.tanh import tanh_kind

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    difference = (out.double() - expected.double()).abs().max()
    return (difference / expected.double().abs().max()).item()


def compare(
    name: str,
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int, int],
    settings: kernels.Settings | None = None,
) -> None:
    """Results and gradients against float64; scalars are a slice of a wider tensor.

    `sizes` are edges, rows in, rows out, channels and points.
    """
    edges, rows, rows_out, channels, points = sizes
    torch.manual_seed(0)
    wide = torch.randn(edges, 2 * channels + 3, device=DEVICE).to(dtype)
    x = torch.randn(edges, rows, channels, device=DEVICE).to(dtype)
    to_points = torch.randn(points, rows, device=DEVICE) / rows**0.5
    from_points = torch.randn(rows_out - 1, points, device=DEVICE) / points**0.5
    grad = torch.randn(edges, rows_out, channels, device=DEVICE).to(dtype)
    scalars = wide[:, 3 : channels + 3]
    precise = [t.double().requires_grad_() for t in (scalars, x)]
    expected = plain_silu_on_points(*precise, to_points, from_points)
    references = torch.autograd.grad(expected, precise, grad.double())
    if settings is None:
        leaves = [scalars.requires_grad_(), x.requires_grad_()]
        out = kernels.silu_on_points(*leaves, to_points, from_points)
        gradients = torch.autograd.grad(out, leaves, grad)
    else:
        out = kernels.forward(scalars, x, to_points, from_points, settings)
        gradients = kernels.backward(grad, scalars, x, to_points, from_points, settings)
    assert out.dtype == x.dtype
    assert gradients[0].shape == scalars.shape
    print(f"{name} {error(out, expected):.3e}")
    for part, mine, theirs in zip(("scalars", "x"), gradients, references, strict=True):
        print(f"{name}_gradient_of_{part} {error(mine, theirs):.3e}")


def main(dtype: torch.dtype) -> None:
    """Compare in one precision."""
    torch.backends.cuda.matmul.allow_tf32 = True
    compare("message_block", dtype, (5, 19, 19, 24, 110))
    compare("few_rows_out", dtype, (3, 9, 5, 8, 26))
    compare("many_points", dtype, (2, 14, 16, 4, 300))
    for rows, tiles, points in ((16, 1, 128), (16, 2, 32), (64, 2, 16)):
        settings = kernels.Settings(rows, tiles, points, 4, 1, tanh_kind())
        compare(f"settings_{rows}_{tiles}_{points}", dtype, (5, 9, 9, 20, 50), settings)
    empty = [torch.zeros(0, 8, device=DEVICE), torch.zeros(0, 9, 8, device=DEVICE)]
    empty = [t.to(dtype).requires_grad_() for t in empty]
    matrices = torch.ones(26, 9, device=DEVICE), torch.ones(8, 26, device=DEVICE)
    out = kernels.silu_on_points(*empty, *matrices)
    assert out.shape == (0, 9, 8)
    assert [len(gradient) for gradient in torch.autograd.grad(out.sum(), empty)] == [0, 0]


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
