"""Compare the fused kernels on edges with plain PyTorch; prints one error a line.

Arguments are the types to compare in.

Runs on a GPU where there is one, else in Triton's interpreter on the CPU, which has to be chosen
before Triton is imported: hence a program of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from est_ocp.nn.coefficient_index import num_frame_rows
from est_ocp.nn.edge_rotation import edge_order, rotate_by_order, sum_from_frames
from est_ocp.nn.triton import edge_orders, edge_sum
from est_ocp.nn.triton.launch import Launch, aligned_columns

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NODES, EDGES, LMAX, MMAX, CHANNELS = 4, 7, 2, 1, 20
ROWS, COEFFICIENTS = num_frame_rows(LMAX, MMAX), (LMAX + 1) ** 2
#: Two heads whose width is no power of two.
HEADS, WIDTH = 3, 12
#: Several blocks of channels, and runs of edges that do not divide their number.
SMALL = Launch(num_warps=2, num_stages=1, row_bytes=32, edges=4)


def report(name: str, out: torch.Tensor, expected: torch.Tensor) -> None:
    """Print the largest difference over the largest value."""
    error = (out.double() - expected.double()).abs().max() / expected.double().abs().max()
    print(f"{name} {error.item():.3e}")


def aligned(wigner: torch.Tensor) -> torch.Tensor:
    """Rotations in padded rows, on the CPU too."""
    padded = aligned_columns(COEFFICIENTS, wigner.element_size())
    rows = torch.nn.functional.pad(wigner, (0, padded - COEFFICIENTS))
    return rows[:, :, :COEFFICIENTS]


def with_gaps(wigner: torch.Tensor) -> torch.Tensor:
    """Rotations with the strides of padded rows, without room for the last, and NaN between."""
    strides = aligned(wigner).stride()
    length = (EDGES - 1) * strides[0] + (ROWS - 1) * strides[1] + COEFFICIENTS
    memory = wigner.new_full((length,), torch.nan)
    return memory.as_strided(wigner.shape, strides).copy_(wigner)


def compare(
    name: str,
    fused: Callable[..., list[torch.Tensor]],
    plain: Callable[..., list[torch.Tensor]],
    *inputs: torch.Tensor,
) -> None:
    """Compare results and gradients of two functions; the plain one runs in float64."""
    mine = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    out, expected = fused(*mine), plain(*exact)
    grads = [torch.randn_like(t) for t in out]
    for i, (a, b) in enumerate(zip(out, expected, strict=True)):
        report(f"{name}_{i}", a, b)
    gradients = torch.autograd.grad(out, mine, grads)
    references = torch.autograd.grad(expected, exact, [g.double() for g in grads])
    for i, (a, b) in enumerate(zip(gradients, references, strict=True)):
        assert a.dtype == inputs[i].dtype
        report(f"{name}_gradient_{i}", a, b)


def graph() -> torch.Tensor:
    """Random edges; the last node has none."""
    return torch.randint(0, NODES - 1, (2, EDGES), device=DEVICE)


def compare_orders(dtype: torch.dtype, orders: int) -> None:
    """Compare the inputs of a convolution of as many orders."""
    edge_index = graph()
    order = edge_order(edge_index, NODES)
    degrees = LMAX + 1
    weights = orders * degrees - orders * (orders - 1) // 2
    wigner = torch.randn(EDGES, ROWS, COEFFICIENTS, device=DEVICE, dtype=dtype)
    compare(
        f"orders_{orders}",
        lambda x, radial: edge_orders.to_orders(
            x, wigner, radial, edge_index, *order, degrees, orders
        ),
        lambda x, radial: rotate_by_order(x, wigner.double(), radial, edge_index, degrees, orders),
        torch.randn(NODES, COEFFICIENTS, CHANNELS, device=DEVICE, dtype=dtype),
        torch.randn(EDGES, weights * 2 * CHANNELS, device=DEVICE, dtype=dtype),
    )


def compare_sum(dtype: torch.dtype) -> None:
    """Compare the weighted sum at the targets; weights are in float32 as softmax makes them."""
    edge_index = graph()
    order = edge_order(edge_index, NODES)
    wigner = torch.randn(EDGES, ROWS, COEFFICIENTS, device=DEVICE, dtype=dtype)
    compare(
        "sum",
        lambda messages, weights: [
            edge_sum.weighted_from_frames(
                messages, wigner, weights, edge_index[1], order.permutation[1], order.offsets[1]
            )
        ],
        lambda messages, weights: [
            sum_from_frames(messages, wigner.double(), edge_index, NODES, weights=weights)
        ],
        torch.randn(EDGES, ROWS, HEADS * WIDTH, device=DEVICE, dtype=dtype),
        torch.rand(EDGES, HEADS, device=DEVICE),
    )


def compare_launches(dtype: torch.dtype) -> None:
    """Settings of a launch change no result."""
    kind = {"device": DEVICE, "dtype": dtype}
    edge_index = graph()
    order = edge_order(edge_index, NODES)
    wigner = torch.randn(EDGES, ROWS, COEFFICIENTS, **kind)
    x = torch.randn(NODES, COEFFICIENTS, CHANNELS, **kind)
    radial = torch.randn(EDGES, 5 * 2 * CHANNELS, **kind)
    degrees, orders = LMAX + 1, MMAX + 1
    results = []
    for launch in (edge_orders.FORWARD, SMALL):
        results.append(
            edge_orders.launch_forward(x, wigner, radial, edge_index, degrees, orders, launch)
        )
    for i, (a, b) in enumerate(zip(*results, strict=True)):
        report(f"launch_orders_{i}", b, a)
    grads, results = results[0], []
    for launch in (SMALL, edge_orders.BACKWARD.of(x)):
        results.append(
            edge_orders.launch_backward(grads, x, wigner, radial, *order, degrees, launch)
        )
    for i, (a, *others) in enumerate(zip(*results, strict=True)):
        for b in others:
            report(f"launch_orders_gradient_{i}", b, a)
    messages = torch.randn(EDGES, ROWS, HEADS * WIDTH, **kind)
    weights = torch.rand(EDGES, HEADS, device=DEVICE)
    target = (order.permutation[1], order.offsets[1])
    sums = [
        edge_sum.launch_forward(messages, wigner, weights, *target, launch)
        for launch in (edge_sum.FORWARD.of(x), SMALL)
    ]
    report("launch_sum", sums[1], sums[0])
    results = [
        edge_sum.launch_backward(sums[0], messages, wigner, weights, edge_index[1], launch)
        for launch in (edge_sum.BACKWARD, SMALL)
    ]
    for i, (a, b) in enumerate(zip(*results, strict=True)):
        report(f"launch_sum_gradient_{i}", b, a)


def compare_layouts(dtype: torch.dtype) -> None:
    """How rotations lie in memory changes no result."""
    kind = {"device": DEVICE, "dtype": dtype}
    edge_index = graph()
    order = edge_order(edge_index, NODES)
    target = (order.permutation[1], order.offsets[1])
    degrees, orders = LMAX + 1, MMAX + 1
    x = torch.randn(NODES, COEFFICIENTS, CHANNELS, **kind)
    radial = torch.randn(EDGES, 5 * 2 * CHANNELS, **kind)
    messages = torch.randn(EDGES, ROWS, HEADS * WIDTH, **kind)
    weights = torch.rand(EDGES, HEADS, device=DEVICE)
    wigner = torch.randn(EDGES, ROWS, COEFFICIENTS, **kind)
    strided = wigner.transpose(1, 2).contiguous().transpose(1, 2)
    results = []
    for rotations in (wigner, aligned(wigner), with_gaps(wigner), strided):
        out = edge_orders.launch_forward(x, rotations, radial, edge_index, degrees, orders)
        total = edge_sum.launch_forward(messages, rotations, weights, *target)
        results.append(
            [
                *out,
                *edge_orders.launch_backward(out, x, rotations, radial, *order, degrees),
                total,
                *edge_sum.launch_backward(total, messages, rotations, weights, edge_index[1]),
            ]
        )
    for first, *others in zip(*results, strict=True):
        for i, other in enumerate(others):
            report(f"layout_{i}", other, first)


def check_no_edges(dtype: torch.dtype) -> None:
    """Without edges sums and gradients are zero; without nodes they are empty."""
    for nodes in (NODES, 0):
        none = torch.empty(2, 0, dtype=torch.long, device=DEVICE)
        order = edge_order(none, nodes)
        kind = {"device": DEVICE, "dtype": dtype}
        x = torch.randn(nodes, COEFFICIENTS, CHANNELS, requires_grad=True, **kind)
        wigner = torch.empty(0, ROWS, COEFFICIENTS, **kind)
        radial = torch.empty(0, 5 * 2 * CHANNELS, requires_grad=True, **kind)
        out = edge_orders.to_orders(x, wigner, radial, none, *order, LMAX + 1, MMAX + 1)
        assert [t.shape for t in out] == [(0, 3 * 2 * CHANNELS), (0, 4 * 2 * CHANNELS)]
        gradient, of_radial = torch.autograd.grad(sum(t.sum() for t in out), (x, radial))
        assert gradient.shape == x.shape
        assert of_radial.shape == radial.shape
        messages = torch.empty(0, ROWS, HEADS * WIDTH, requires_grad=True, **kind)
        weights = torch.empty(0, HEADS, device=DEVICE, requires_grad=True)
        total = edge_sum.weighted_from_frames(
            messages, wigner, weights, none[1], order.permutation[1], order.offsets[1]
        )
        assert total.shape == (nodes, COEFFICIENTS, HEADS * WIDTH)
        torch.autograd.grad(total.sum(), (messages, weights))
        largest = torch.cat((gradient.flatten(), total.flatten(), gradient.new_zeros(1)))
        print(f"no_edges_{nodes} {largest.abs().max().item():.3e}")


def main(dtype: torch.dtype) -> None:
    """Compare all operations in one precision."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    for orders in range(1, MMAX + 2):
        compare_orders(dtype, orders)
    compare_sum(dtype)
    check_no_edges(dtype)
    compare_layouts(dtype)
    if dtype == torch.float32:
        compare_launches(dtype)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"dtype {name}")
        main(getattr(torch, name))
