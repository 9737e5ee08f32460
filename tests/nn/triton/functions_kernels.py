"""Compare the fused kernels on features kept as products with plain PyTorch; an error a line.

Runs on a GPU where there is one, else in Triton's interpreter on the CPU, which has to be chosen
before Triton is imported: hence a program of its own.
"""

from __future__ import annotations

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from est_ocp.nn.triton.attention_functions import attention_functions
from est_ocp.nn.triton.functions_norm import functions_norm
from est_ocp.nn.triton.silu_on_functions import silu_on_functions
from est_ocp.sphere import make_rule
from est_ocp.sphere.harmonics import spherical_harmonics

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    difference = (out.double() - expected.double()).abs().max()
    return (difference / expected.double().abs().max()).item()


def matrices(lmax: int, kind: str, points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Harmonics at the points of a rule, and the way back, in float64."""
    rule = make_rule(kind, points)
    harmonics = spherical_harmonics(rule.points, lmax)
    return harmonics.to(DEVICE), (harmonics.T * rule.weights).to(DEVICE)


def report(name: str, results, leaves, references, precise, grad) -> None:
    """Print the errors of a result and of its gradients."""
    mine = torch.autograd.grad(results, leaves, grad)
    theirs = torch.autograd.grad(references, precise, grad.double())
    print(f"{name} {error(results, references):.3e}")
    for number, (gradient, reference) in enumerate(zip(mine, theirs, strict=True)):
        assert gradient.shape == reference.shape
        print(f"{name}_gradient_{number} {error(gradient, reference):.3e}")


def compare_silu(
    name: str, dtype: torch.dtype, sphere: tuple[int, str, int], sizes: tuple[int, int, int, int]
) -> None:
    """`sizes` are nodes, the nodes' own functions, channels and experts."""
    nodes, own, channels, experts = sizes
    torch.manual_seed(0)
    to_points, from_points = matrices(*sphere)
    num_points, num_in = to_points.shape
    rows = torch.randn(nodes, num_in + own, channels, device=DEVICE) / num_in**0.5
    functions = torch.randn(nodes, num_points, own, device=DEVICE)
    bias = torch.randn(channels, device=DEVICE)
    leaves = [rows.to(dtype), functions.to(dtype), bias]
    precise = [leaf.double().requires_grad_() for leaf in leaves]
    basis = torch.cat((to_points.expand(nodes, -1, -1), precise[1]), dim=2)
    expected = from_points @ torch.nn.functional.silu(basis @ precise[0] + precise[2])
    expected = expected.unflatten(2, (experts, -1)).permute(2, 0, 1, 3)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = silu_on_functions(*leaves, to_points.float(), from_points.float(), experts)
    assert out.dtype == dtype
    grad = torch.randn(out.shape, device=DEVICE).to(dtype)
    report(name, out, leaves, expected, precise, grad)


def compare_attention(
    name: str, dtype: torch.dtype, sphere: tuple[int, str, int], sizes: tuple[int, int, int]
) -> None:
    """`sizes` are nodes, heads and channels; queries and keys are slices of one tensor."""
    nodes, heads, channels = sizes
    torch.manual_seed(0)
    to_points, _ = matrices(*sphere)
    num_points, num_in = to_points.shape
    wide = torch.randn(nodes, num_in, 3 * channels, device=DEVICE) / num_in**0.5
    bias = torch.randn(num_points, num_points, device=DEVICE)
    scale = (heads / channels) ** 0.5
    wide = wide.to(dtype)
    precise = wide.double().requires_grad_()
    query, key = (
        part.unflatten(2, (heads, -1)).transpose(1, 2)
        for part in precise.split((channels, channels, channels), dim=2)[:2]
    )
    logits = to_points @ (scale * query @ key.mT) @ to_points.T + bias.double()
    expected = torch.softmax(logits, dim=-1) @ to_points[:, 1:]
    expected = expected.transpose(1, 2).flatten(2)
    wide.requires_grad_()
    query, key, _ = wide.split((channels, channels, channels), dim=2)
    out = attention_functions(query, key, to_points.float(), bias, heads, scale)
    grad = torch.randn(out.shape, device=DEVICE).to(dtype)
    report(name, out, [wide], expected, [precise], grad)


def compare_norm(
    name: str,
    dtype: torch.dtype,
    sphere: tuple[int, str, int],
    sizes: tuple[int, int, int],
    constant: bool,
) -> None:
    """`sizes` are nodes, the nodes' own functions and channels; own vectors are a slice."""
    nodes, own, channels = sizes
    torch.manual_seed(0)
    to_points, from_points = matrices(*sphere)
    num_points, num_in = to_points.shape
    weights = from_points[0] / to_points[:, 0]
    leaves = [
        torch.randn(nodes, num_in, channels, device=DEVICE) + 0.5,
        torch.randn(nodes, channels, device=DEVICE),
        torch.randn(nodes, own + 1, channels, device=DEVICE),
        torch.randn(nodes, num_points, own, device=DEVICE).to(dtype),
        torch.randn(channels, device=DEVICE),
        torch.randn(channels, device=DEVICE),
    ]
    precise = [leaf.double().requires_grad_() for leaf in leaves]
    x, row, wide, functions, weight, bias = precise
    vectors = torch.cat((x / 3, wide[:, 1:]), dim=1)
    if constant:
        vectors = torch.cat((vectors[:, :1] + row[:, None], vectors[:, 1:]), dim=1)
    vectors = vectors - vectors.mean(dim=2, keepdim=True)
    f = torch.cat((to_points.expand(nodes, -1, -1), functions), dim=2) @ vectors
    variance = (weights[:, None] * f.square()).sum(dim=(1, 2)) / channels
    expected = vectors * torch.rsqrt(variance + 1e-5)[:, None, None] * weight
    expected = torch.cat((expected[:, :1] + bias, expected[:, 1:]), dim=1)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    x, row, wide, functions, weight, bias = leaves
    out, *_ = functions_norm(
        x, row if constant else None, wide[:, 1:], functions, to_points.float(), weights.float(),
        weight, bias, 1 / 3, 1e-5, dtype,
    )  # fmt: skip
    grad = torch.randn(out.shape, device=DEVICE).to(dtype)
    kept = [0, 1, 2, 3, 4, 5] if own and constant else [0, 4, 5]
    report(name, out, [leaves[k] for k in kept], expected, [precise[k] for k in kept], grad)


def main(dtype: torch.dtype) -> None:
    """Compare in one precision."""
    torch.backends.cuda.matmul.allow_tf32 = True
    compare_silu("s2ef", dtype, (4, "design", 128), (2, 24, 80, 2))
    compare_silu("qm9", dtype, (2, "design", 64), (3, 8, 40, 4))
    compare_silu("heads", dtype, (2, "lebedev", 50), (2, 16, 20, 1))
    compare_attention("attention_s2ef", dtype, (4, "design", 128), (2, 1, 40))
    compare_attention("attention_qm9", dtype, (2, "lebedev", 50), (3, 1, 24))
    compare_attention("attention_heads", dtype, (1, "lebedev", 26), (2, 4, 24))
    compare_norm("norm_s2ef", dtype, (4, "design", 128), (2, 24, 40), True)
    compare_norm("norm_qm9", dtype, (2, "lebedev", 50), (3, 8, 24), True)
    compare_norm("norm_harmonics", dtype, (2, "lebedev", 26), (3, 0, 20), False)
    to_points, from_points = (m.float() for m in matrices(2, "lebedev", 26))
    empty = [torch.zeros(0, 17, 8, device=DEVICE), torch.zeros(0, 26, 8, device=DEVICE)]
    empty = [tensor.to(dtype).requires_grad_() for tensor in empty]
    bias = torch.zeros(8, device=DEVICE, requires_grad=True)
    out = silu_on_functions(*empty, bias, to_points, from_points, 2)
    assert out.shape == (2, 0, 9, 4)
    gradients = torch.autograd.grad(out.sum(), [*empty, bias])
    assert [len(gradient) for gradient in gradients] == [0, 0, 8]


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
