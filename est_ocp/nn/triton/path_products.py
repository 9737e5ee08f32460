"""Tensor products of features with one matrix an edge, all paths to a degree in one tensor, fused.

A plain product writes the coupled features, multiplies them by the weights of their paths and
copies them into tensors by degree, and keeps most of that for the backward pass. Here features,
matrices and weights are read once and the results written once, forward and backward; nothing but
the inputs is kept. Sums have a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from est_ocp.nn.triton.launch import dense_rows

#: Results of at most so many degrees, from features of at most so many orders.
MAX_DEGREES, MAX_ORDERS = 3, 5

#: Elements of the features that one program handles at a time: with more, registers would leave few
#: programs a multiprocessor (sm_90: 80 to 128 registers a thread, twice that for twice as many).
FORWARD_ELEMENTS, BACKWARD_ELEMENTS = 512, 256


@triton.jit
def _load_orders(where, width, mask, ORDERS: tl.constexpr):
    """Features of one degree in float32: 1, 3 or 5 orders, the first one in place of the rest."""
    x0 = tl.load(where, mask=mask, other=0.0).to(tl.float32)
    x1, x2, x3, x4 = x0, x0, x0, x0
    if ORDERS > 1:
        x1 = tl.load(where + width, mask=mask, other=0.0).to(tl.float32)
        x2 = tl.load(where + 2 * width, mask=mask, other=0.0).to(tl.float32)
    if ORDERS > 3:
        x3 = tl.load(where + 3 * width, mask=mask, other=0.0).to(tl.float32)
        x4 = tl.load(where + 4 * width, mask=mask, other=0.0).to(tl.float32)
    return x0, x1, x2, x3, x4


@triton.jit
def _entry(row, order, in_edges):
    """One entry of every edge's matrix, as a column."""
    return tl.load(row + order, mask=in_edges, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _couple(row, in_edges, x0, x1, x2, x3, x4, ORDERS: tl.constexpr):
    """One row of every edge's matrix times the features."""
    y = _entry(row, 0, in_edges) * x0
    if ORDERS > 1:
        y += _entry(row, 1, in_edges) * x1 + _entry(row, 2, in_edges) * x2
    if ORDERS > 3:
        y += _entry(row, 3, in_edges) * x3 + _entry(row, 4, in_edges) * x4
    return y


@triton.jit
def _results_of_degree(
    out_ptr, out_width, group, matrix, weights, table_ptr,
    edge, c, in_edges, mask, x0, x1, x2, x3, x4,
    ORDERS: tl.constexpr, ROWS: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Write the channels of all paths to one degree, whose tensor is [E, ROWS, out_width]."""
    out = out_ptr + edge[:, None] * (ROWS * out_width) + c[None, :]
    for path in range(tl.load(table_ptr + group), tl.load(table_ptr + group + 1)):
        entry = table_ptr + 4 + 3 * path
        row = matrix + tl.load(entry) * ORDERS
        channel = tl.load(entry + 2)
        if WEIGHTED:
            weight = tl.load(weights + tl.load(entry + 1), mask=mask, other=0.0).to(tl.float32)
        for k in tl.static_range(ROWS):
            y = _couple(row + k * ORDERS, in_edges, x0, x1, x2, x3, x4, ORDERS)
            if WEIGHTED:
                y *= weight
            where = out + k * out_width + channel
            tl.store(where, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _forward_kernel(
    x_ptr, matrix_ptr, weight_ptr, table_ptr, out0_ptr, out1_ptr, out2_ptr,
    num_edges, edge_stride, width, num_rows, weight_stride, width0, width1, width2,
    ORDERS: tl.constexpr, ROWS0: tl.constexpr, ROWS1: tl.constexpr, ROWS2: tl.constexpr,
    WEIGHTED: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program a block of edges and of channels of one degree: its share of all results."""
    edge = (tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_edges = edge < num_edges
    mask = in_edges[:, None] & (c < width)[None, :]
    x0, x1, x2, x3, x4 = _load_orders(
        x_ptr + edge[:, None] * edge_stride + c[None, :], width, mask, ORDERS
    )
    matrix = matrix_ptr + edge * num_rows * ORDERS
    weights = weight_ptr + edge[:, None] * weight_stride + c[None, :]
    _results_of_degree(
        out0_ptr, width0, 0, matrix, weights, table_ptr,
        edge, c, in_edges, mask, x0, x1, x2, x3, x4, ORDERS, ROWS0, WEIGHTED,
    )  # fmt: skip
    if ROWS1 > 0:
        _results_of_degree(
            out1_ptr, width1, 1, matrix, weights, table_ptr,
            edge, c, in_edges, mask, x0, x1, x2, x3, x4, ORDERS, ROWS1, WEIGHTED,
        )  # fmt: skip
    if ROWS2 > 0:
        _results_of_degree(
            out2_ptr, width2, 2, matrix, weights, table_ptr,
            edge, c, in_edges, mask, x0, x1, x2, x3, x4, ORDERS, ROWS2, WEIGHTED,
        )  # fmt: skip


@triton.jit
def _gradients_of_degree(
    grad_ptr, grad_width, group, matrix, weights, grad_weights, table_ptr,
    edge, c, in_edges, mask, x0, x1, x2, x3, x4, d0, d1, d2, d3, d4,
    ORDERS: tl.constexpr, ROWS: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Add one degree's part of the features' gradient; write the gradient of its weights."""
    grads = grad_ptr + edge[:, None] * (ROWS * grad_width) + c[None, :]
    for path in range(tl.load(table_ptr + group), tl.load(table_ptr + group + 1)):
        entry = table_ptr + 4 + 3 * path
        row = matrix + tl.load(entry) * ORDERS
        column = tl.load(entry + 1)
        channel = tl.load(entry + 2)
        if WEIGHTED:
            weight = tl.load(weights + column, mask=mask, other=0.0).to(tl.float32)
            total = tl.zeros_like(weight)
        for k in tl.static_range(ROWS):
            where = grads + k * grad_width + channel
            grad = tl.load(where, mask=mask, other=0.0).to(tl.float32)
            here = row + k * ORDERS
            if WEIGHTED:
                total += grad * _couple(here, in_edges, x0, x1, x2, x3, x4, ORDERS)
                grad *= weight
            d0 += _entry(here, 0, in_edges) * grad
            if ORDERS > 1:
                d1 += _entry(here, 1, in_edges) * grad
                d2 += _entry(here, 2, in_edges) * grad
            if ORDERS > 3:
                d3 += _entry(here, 3, in_edges) * grad
                d4 += _entry(here, 4, in_edges) * grad
        if WEIGHTED:
            tl.store(grad_weights + column, total.to(grad_weights.dtype.element_ty), mask=mask)
    return d0, d1, d2, d3, d4


@triton.jit
def _backward_kernel(
    x_ptr, matrix_ptr, weight_ptr, table_ptr, grad0_ptr, grad1_ptr, grad2_ptr,
    grad_x_ptr, grad_weight_ptr,
    num_edges, edge_stride, width, num_rows, weight_stride, width0, width1, width2,
    ORDERS: tl.constexpr, ROWS0: tl.constexpr, ROWS1: tl.constexpr, ROWS2: tl.constexpr,
    WEIGHTED: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program a block of edges and of channels of one degree: gradients of both inputs."""
    edge = (tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_edges = edge < num_edges
    mask = in_edges[:, None] & (c < width)[None, :]
    d0 = tl.zeros((BLOCK_E, BLOCK_C), dtype=tl.float32)
    d1, d2, d3, d4 = d0, d0, d0, d0
    x0, x1, x2, x3, x4 = d0, d0, d0, d0, d0
    if WEIGHTED:
        x0, x1, x2, x3, x4 = _load_orders(
            x_ptr + edge[:, None] * edge_stride + c[None, :], width, mask, ORDERS
        )
    matrix = matrix_ptr + edge * num_rows * ORDERS
    weights = weight_ptr + edge[:, None] * weight_stride + c[None, :]
    grad_weights = grad_weight_ptr + edge[:, None] * weight_stride + c[None, :]
    d0, d1, d2, d3, d4 = _gradients_of_degree(
        grad0_ptr, width0, 0, matrix, weights, grad_weights, table_ptr,
        edge, c, in_edges, mask, x0, x1, x2, x3, x4, d0, d1, d2, d3, d4,
        ORDERS, ROWS0, WEIGHTED,
    )  # fmt: skip
    if ROWS1 > 0:
        d0, d1, d2, d3, d4 = _gradients_of_degree(
            grad1_ptr, width1, 1, matrix, weights, grad_weights, table_ptr,
            edge, c, in_edges, mask, x0, x1, x2, x3, x4, d0, d1, d2, d3, d4,
            ORDERS, ROWS1, WEIGHTED,
        )  # fmt: skip
    if ROWS2 > 0:
        d0, d1, d2, d3, d4 = _gradients_of_degree(
            grad2_ptr, width2, 2, matrix, weights, grad_weights, table_ptr,
            edge, c, in_edges, mask, x0, x1, x2, x3, x4, d0, d1, d2, d3, d4,
            ORDERS, ROWS2, WEIGHTED,
        )  # fmt: skip
    kind = grad_x_ptr.dtype.element_ty
    out = grad_x_ptr + edge[:, None] * (ORDERS * width) + c[None, :]
    tl.store(out, d0.to(kind), mask=mask)
    if ORDERS > 1:
        tl.store(out + width, d1.to(kind), mask=mask)
        tl.store(out + 2 * width, d2.to(kind), mask=mask)
    if ORDERS > 3:
        tl.store(out + 3 * width, d3.to(kind), mask=mask)
        tl.store(out + 4 * width, d4.to(kind), mask=mask)


def _launch(
    kernel,
    x: Tensor,
    matrix: Tensor,
    table: Tensor,
    weights: Tensor | None,
    results: Sequence[Tensor],
    elements: int,
    gradients: Sequence[Tensor] = (),
) -> None:
    """Run one of the two kernels for the features of one degree."""
    num_edges, orders, width = x.shape
    if not num_edges:
        return
    block_c = min(128, triton.next_power_of_2(width))
    block_e = elements // block_c
    missing = MAX_DEGREES - len(results)
    weighted = weights is not None
    kernel[(triton.cdiv(num_edges, block_e), triton.cdiv(width, block_c))](
        x, matrix, weights if weighted else matrix, table,
        *results, *[results[0]] * missing, *gradients,
        num_edges, x.stride(0), width, matrix.shape[1], weights.shape[1] if weighted else 0,
        *[result.shape[2] for result in results], *[0] * missing,
        ORDERS=orders, WEIGHTED=weighted, BLOCK_E=block_e, BLOCK_C=block_c, num_warps=4,
        **{f"ROWS{i}": results[i].shape[1] if i < len(results) else 0 for i in range(MAX_DEGREES)},
    )  # fmt: skip


@torch.library.custom_op("est_ocp::path_products", mutates_args=())
def path_products(
    blocks: list[Tensor],
    matrices: list[Tensor],
    weights: Tensor | None,
    tables: list[Tensor],
    degrees: list[int],
    widths: list[int],
) -> list[Tensor]:
    """Multiply features by matrices and weights; channels of all paths to a degree side by side.

    Parameters
    ----------
    blocks : list of Tensor [E, 2 l1 + 1, width]
        Features, at most 5 orders each.
    matrices : list of Tensor [E, rows, 2 l1 + 1]
        One a block: rows of all its paths. They get no gradient.
    weights : Tensor [E, W], optional
        Weights of paths and channels; all ones if left out.
    tables : list of Tensor, int32
        One a block: where the paths to each result begin and end in what follows (4 numbers), then
        for every path its first row, its first weight and its first channel in the result.
    degrees, widths : list of int
        Degrees l3 of the results, at most 3 of them, and their channels.

    Returns
    -------
    list of Tensor [E, 2 l3 + 1, width]
        In the type of the features.
    """
    num_edges = matrices[0].shape[0]
    out = [
        blocks[0].new_empty(num_edges, 2 * degree + 1, width)
        for degree, width in zip(degrees, widths, strict=True)
    ]
    weights = None if weights is None else weights.contiguous()
    for block, matrix, table in zip(blocks, matrices, tables, strict=True):
        _launch(
            _forward_kernel, dense_rows(block), matrix.contiguous(), table, weights, out,
            FORWARD_ELEMENTS,
        )  # fmt: skip
    return out


@torch.library.custom_op("est_ocp::path_products_backward", mutates_args=())
def path_products_backward(
    grads: list[Tensor],
    blocks: list[Tensor],
    matrices: list[Tensor],
    weights: Tensor | None,
    tables: list[Tensor],
) -> list[Tensor]:
    """Gradients of :func:`path_products`: of every block and, last, of the weights if given."""
    grads = [grad.contiguous() for grad in grads]
    weights = None if weights is None else weights.contiguous()
    out = [block.new_empty(block.shape) for block in blocks]
    grad_weights = [] if weights is None else [torch.empty_like(weights)]
    for block, matrix, table, grad in zip(blocks, matrices, tables, out, strict=True):
        _launch(
            _backward_kernel, dense_rows(block), matrix.contiguous(), table, weights, grads,
            BACKWARD_ELEMENTS, [grad, *(grad_weights or [grad])],
        )  # fmt: skip
    return out + grad_weights


@path_products.register_fake
def _(blocks, matrices, weights, tables, degrees, widths):
    num_edges = matrices[0].shape[0]
    return [
        blocks[0].new_empty(num_edges, 2 * degree + 1, width)
        for degree, width in zip(degrees, widths, strict=True)
    ]


@path_products_backward.register_fake
def _(grads, blocks, matrices, weights, tables):
    out = [block.new_empty(block.shape) for block in blocks]
    return out if weights is None else [*out, torch.empty_like(weights.contiguous())]


def _keep(ctx, inputs, output):
    blocks, matrices, weights, tables, _, _ = inputs
    ctx.weighted, ctx.num_blocks = weights is not None, len(blocks)
    ctx.save_for_backward(*blocks, *matrices, *tables, *([weights] if ctx.weighted else []))


def _backward(ctx, grads):
    n = ctx.num_blocks
    saved = list(ctx.saved_tensors)
    weights = saved.pop() if ctx.weighted else None
    blocks, matrices, tables = saved[:n], saved[n : 2 * n], saved[2 * n :]
    out = path_products_backward(list(grads), blocks, matrices, weights, tables)
    none = [None] * n
    return out[:n], none, out[n] if ctx.weighted else None, none, None, None


path_products.register_autograd(_backward, setup_context=_keep)
