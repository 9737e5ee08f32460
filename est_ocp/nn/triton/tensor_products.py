"""Inner products of GotenNet's edges, which refine their scalars, fused.

Queries and keys of nodes are read where they are: plain PyTorch gathers them for all edges, and
writes products of [E, (L+1)^2, C] several times over. Gradients are added up at the nodes in
registers, in a fixed order. Degrees up to 2; directions get no gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from est_ocp.nn.triton.tensor_rows import degree_of, launch_settings, load_row


@triton.jit
def _steerable(x, channels, mask, LMAX: tl.constexpr):
    """Rows of degrees 1 and 2; the first one in place of those that are not there."""
    x1, x2 = load_row(x, mask), load_row(x + channels, mask)
    x3 = load_row(x + 2 * channels, mask)
    x4, x5, x6, x7, x8 = x1, x1, x1, x1, x1
    if LMAX > 1:
        x4, x5 = load_row(x + 3 * channels, mask), load_row(x + 4 * channels, mask)
        x6, x7 = load_row(x + 5 * channels, mask), load_row(x + 6 * channels, mask)
        x8 = load_row(x + 7 * channels, mask)
    return x1, x2, x3, x4, x5, x6, x7, x8


@triton.jit
def _across(r, x1, x2, x3, x4, x5, x6, x7, x8, LMAX: tl.constexpr):
    """Rows without the part of each degree along the direction ``r``."""
    r1, r2 = tl.load(r).to(tl.float32), tl.load(r + 1).to(tl.float32)
    r3 = tl.load(r + 2).to(tl.float32)
    along = x1 * r1 + x2 * r2 + x3 * r3
    x1 -= along * r1
    x2 -= along * r2
    x3 -= along * r3
    if LMAX > 1:
        r4, r5 = tl.load(r + 3).to(tl.float32), tl.load(r + 4).to(tl.float32)
        r6, r7 = tl.load(r + 5).to(tl.float32), tl.load(r + 6).to(tl.float32)
        r8 = tl.load(r + 7).to(tl.float32)
        along = x4 * r4 + x5 * r5 + x6 * r6 + x7 * r7 + x8 * r8
        x4 -= along * r4
        x5 -= along * r5
        x6 -= along * r6
        x7 -= along * r7
        x8 -= along * r8
    return x1, x2, x3, x4, x5, x6, x7, x8


@triton.jit
def _products_kernel(
    query_ptr, key_ptr, harmonics_ptr, source_ptr, permutation_ptr, offsets_ptr, out_ptr,
    channels, LMAX: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program a target and block of channels: the products of all its edges."""
    ROWS: tl.constexpr = (LMAX + 1) * (LMAX + 1) - 1
    node = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < channels
    q1, q2, q3, q4, q5, q6, q7, q8 = _steerable(
        query_ptr + node * ROWS * channels + c, channels, mask, LMAX
    )
    for k in range(tl.load(offsets_ptr + node), tl.load(offsets_ptr + node + 1)):
        edge = tl.load(permutation_ptr + k)
        source = tl.load(source_ptr + edge)
        k1, k2, k3, k4, k5, k6, k7, k8 = _steerable(
            key_ptr + source * ROWS * channels + c, channels, mask, LMAX
        )
        r = harmonics_ptr + edge * ROWS
        k1, k2, k3, k4, k5, k6, k7, k8 = _across(r, k1, k2, k3, k4, k5, k6, k7, k8, LMAX)
        total = q1 * k1 + q2 * k2 + q3 * k3
        if LMAX > 1:
            total += q4 * k4 + q5 * k5 + q6 * k6 + q7 * k7 + q8 * k8
        tl.store(out_ptr + edge * channels + c, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _products_backward_kernel(
    grad_ptr, other_ptr, harmonics_ptr, end_ptr, permutation_ptr, offsets_ptr, out_ptr,
    channels, LMAX: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program a node and block of channels: the gradient of its query, or of its key."""
    ROWS: tl.constexpr = (LMAX + 1) * (LMAX + 1) - 1
    node = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < channels
    a1 = tl.zeros((BLOCK_C,), dtype=tl.float32)
    a2, a3, a4, a5, a6, a7, a8 = a1, a1, a1, a1, a1, a1, a1
    for k in range(tl.load(offsets_ptr + node), tl.load(offsets_ptr + node + 1)):
        edge = tl.load(permutation_ptr + k)
        grad = load_row(grad_ptr + edge * channels + c, mask)
        x1, x2, x3, x4, x5, x6, x7, x8 = _steerable(
            other_ptr + tl.load(end_ptr + edge) * ROWS * channels + c, channels, mask, LMAX
        )
        r = harmonics_ptr + edge * ROWS
        x1, x2, x3, x4, x5, x6, x7, x8 = _across(r, x1, x2, x3, x4, x5, x6, x7, x8, LMAX)
        a1 += grad * x1
        a2 += grad * x2
        a3 += grad * x3
        if LMAX > 1:
            a4 += grad * x4
            a5 += grad * x5
            a6 += grad * x6
            a7 += grad * x7
            a8 += grad * x8
    out = out_ptr + node * ROWS * channels + c
    tl.store(out, a1, mask=mask)
    tl.store(out + channels, a2, mask=mask)
    tl.store(out + 2 * channels, a3, mask=mask)
    if LMAX > 1:
        tl.store(out + 3 * channels, a4, mask=mask)
        tl.store(out + 4 * channels, a5, mask=mask)
        tl.store(out + 5 * channels, a6, mask=mask)
        tl.store(out + 6 * channels, a7, mask=mask)
        tl.store(out + 7 * channels, a8, mask=mask)


@torch.library.custom_op("est_ocp::tensor_products", mutates_args=())
def tensor_products(
    query: Tensor,
    key: Tensor,
    harmonics: Tensor,
    edge_index: Tensor,
    permutation: Tensor,
    offsets: Tensor,
) -> Tensor:
    """Products of targets' queries and sources' keys without their parts along the edge.

    Parameters
    ----------
    query, key : Tensor [N, (L+1)**2 - 1, C]
        Of one type.
    harmonics : Tensor [E, (L+1)**2 - 1]
        Of length one in every degree, or zero.
    edge_index, permutation, offsets
        As for :func:`est_ocp.nn.triton.tensor_messages.tensor_messages`.

    Returns
    -------
    Tensor [E, C]
        In the type of the queries.
    """
    num_nodes, rows, channels = query.shape
    out = query.new_empty(edge_index.shape[1], channels)
    if num_nodes:
        blocks, launch = launch_settings(channels)
        _products_kernel[(num_nodes, blocks)](
            query.contiguous(), key.contiguous(), harmonics.contiguous(),
            edge_index[0].contiguous(), permutation[1].contiguous(), offsets[1].contiguous(), out,
            channels, LMAX=degree_of(rows + 1), **launch,
        )  # fmt: skip
    return out


@torch.library.custom_op("est_ocp::tensor_products_backward", mutates_args=())
def tensor_products_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    harmonics: Tensor,
    edge_index: Tensor,
    permutation: Tensor,
    offsets: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of queries and keys, float32."""
    num_nodes, rows, channels = query.shape
    grad, harmonics = grad.contiguous(), harmonics.contiguous()
    out = [query.new_empty(query.shape, dtype=torch.float32) for _ in range(2)]
    if num_nodes:
        blocks, launch = launch_settings(channels)
        # The query of an edge belongs to its target (end 1), the key to its source (end 0).
        for end, other, result in ((1, key, out[0]), (0, query, out[1])):
            _products_backward_kernel[(num_nodes, blocks)](
                grad, other.contiguous(), harmonics, edge_index[1 - end].contiguous(),
                permutation[end].contiguous(), offsets[end].contiguous(), result,
                channels, LMAX=degree_of(rows + 1), **launch,
            )  # fmt: skip
    return out[0], out[1]


@tensor_products.register_fake
def _(query, key, harmonics, edge_index, permutation, offsets):
    return query.new_empty(edge_index.shape[1], query.shape[2])


@tensor_products_backward.register_fake
def _(grad, query, key, harmonics, edge_index, permutation, offsets):
    empty = query.new_empty(query.shape, dtype=torch.float32)
    return empty, torch.empty_like(empty)


def _products_backward(ctx, grad):
    query, key, *_ = ctx.saved_tensors
    of_query, of_key = tensor_products_backward(grad, *ctx.saved_tensors)
    return of_query.to(query.dtype), of_key.to(key.dtype), None, None, None, None


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


tensor_products.register_autograd(_products_backward, setup_context=_keep)
