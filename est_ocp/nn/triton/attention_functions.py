"""Functions that spherical attention makes of the harmonics, from queries and keys, fused.

Queries and keys are coefficients, so the logits at S x S points come from (L+1)^2 rows of each. The
kernels hold the logits of a node, or a part of them, in registers; nothing of that size is written
or kept. Products of float32 numbers run as TF32. Sums have a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from est_ocp.nn.triton.loads import load_matrix
from est_ocp.nn.triton.support import block_size


class AttentionLaunch(NamedTuple):
    """How a kernel is launched.

    Attributes
    ----------
    points : int
        Points of the queries at once, a power of two from 16.
    num_warps, num_stages : int
        Triton's options.
    """

    points: int
    num_warps: int
    num_stages: int


#: The fastest on an H200 for features of degree 4 at 128 points.
FORWARD, BACKWARD = AttentionLaunch(64, 4, 1), AttentionLaunch(64, 4, 1)


@triton.jit
def _probabilities(rows, overlap, harmonics, bias_ptr, s, t, num_points):
    """Attention of the points s [R] to all points t [S]: rows add up to one."""
    logits = tl.dot(tl.dot(rows, overlap), tl.trans(harmonics))
    mask = (s < num_points)[:, None] & (t < num_points)[None, :]
    logits += tl.load(bias_ptr + s[:, None] * num_points + t[None, :], mask=mask, other=0.0)
    logits = tl.where((t < num_points)[None, :], logits, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit
def _forward_kernel(
    query_ptr, key_ptr, to_ptr, bias_ptr, out_ptr, scale,
    num_in, num_points, num_heads, head_channels, node_stride, row_stride,
    IN: tl.constexpr, ROWS: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program a node, a head, and a block of the queries' points."""
    node = (tl.program_id(0) // num_heads).to(tl.int64)
    head = tl.program_id(0) % num_heads
    i, d, t = tl.arange(0, IN), tl.arange(0, CHANNELS), tl.arange(0, POINTS)
    s = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    first = node * node_stride + head * head_channels
    query = load_matrix(query_ptr + first, i, d, row_stride, 1, num_in, head_channels)
    key = load_matrix(key_ptr + first, i, d, row_stride, 1, num_in, head_channels)
    overlap = tl.dot(query, tl.trans(key)) * scale
    harmonics = load_matrix(to_ptr, t, i, num_in, 1, num_points, num_in)
    rows = load_matrix(to_ptr, s, i, num_in, 1, num_points, num_in)
    probabilities = _probabilities(rows, overlap, harmonics, bias_ptr, s, t, num_points)
    out = tl.dot(probabilities, load_matrix(to_ptr + 1, t, i, num_in, 1, num_points, num_in - 1))
    width = num_heads * (num_in - 1)
    where = node * num_points * width + head * (num_in - 1)
    tl.store(
        out_ptr + where + s[:, None] * width + i[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=(s < num_points)[:, None] & (i + 1 < num_in)[None, :],
    )


@triton.jit
def _backward_kernel(
    grad_ptr, query_ptr, key_ptr, to_ptr, bias_ptr, grad_query_ptr, grad_key_ptr, scale,
    num_in, num_points, num_heads, head_channels, node_stride, row_stride, blocks,
    IN: tl.constexpr, ROWS: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program a node and a head: gradients of its queries and keys."""
    kind: tl.constexpr = query_ptr.dtype.element_ty
    node = (tl.program_id(0) // num_heads).to(tl.int64)
    head = tl.program_id(0) % num_heads
    i, d, t = tl.arange(0, IN), tl.arange(0, CHANNELS), tl.arange(0, POINTS)
    first = node * node_stride + head * head_channels
    query = load_matrix(query_ptr + first, i, d, row_stride, 1, num_in, head_channels)
    key = load_matrix(key_ptr + first, i, d, row_stride, 1, num_in, head_channels)
    overlap = tl.dot(query, tl.trans(key)) * scale
    harmonics = load_matrix(to_ptr, t, i, num_in, 1, num_points, num_in)
    shifted = load_matrix(to_ptr + 1, t, i, num_in, 1, num_points, num_in - 1)
    width = num_heads * (num_in - 1)
    grad_ptr += node * num_points * width + head * (num_in - 1)
    grad_overlap = tl.zeros((IN, IN), dtype=tl.float32)
    for block in range(blocks):
        s = block * ROWS + tl.arange(0, ROWS)
        rows = load_matrix(to_ptr, s, i, num_in, 1, num_points, num_in)
        probabilities = _probabilities(rows, overlap, harmonics, bias_ptr, s, t, num_points)
        grad = tl.load(
            grad_ptr + s[:, None] * width + i[None, :],
            mask=(s < num_points)[:, None] & (i + 1 < num_in)[None, :],
            other=0.0,
        ).to(tl.float32)
        grad_logits = tl.dot(grad, tl.trans(shifted))
        mean = tl.sum(grad_logits * probabilities, axis=1)
        grad_logits = probabilities * (grad_logits - mean[:, None])
        grad_rows = tl.dot(grad_logits, harmonics)
        grad_overlap = tl.dot(tl.trans(rows), grad_rows, grad_overlap)
    grad_overlap *= scale
    mask = (i < num_in)[:, None] & (d < head_channels)[None, :]
    out = node * num_in * num_heads * head_channels + head * head_channels
    where = out + i[:, None] * (num_heads * head_channels) + d[None, :]
    grad_query = tl.dot(grad_overlap, key.to(tl.float32))
    tl.store(grad_query_ptr + where, grad_query.to(kind), mask=mask)
    grad_key = tl.dot(tl.trans(grad_overlap), query.to(tl.float32))
    tl.store(grad_key_ptr + where, grad_key.to(kind), mask=mask)


def _alike(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Both with channels side by side and the same strides, as slices of one tensor have."""
    if query.stride() == key.stride() and query.stride(2) == 1:
        return query, key
    return query.contiguous(), key.contiguous()


def _sizes(query: Tensor, to_points: Tensor, num_heads: int) -> list[int]:
    return [
        query.shape[1], to_points.shape[0], num_heads, query.shape[2] // num_heads,
        query.stride(0), query.stride(1),
    ]  # fmt: skip


def _blocks(sizes: list[int], launch: AttentionLaunch) -> dict[str, int]:
    num_in, num_points, _, head_channels = sizes[:4]
    points = block_size(num_points)
    return {
        "IN": block_size(num_in),
        "ROWS": min(launch.points, points),
        "POINTS": points,
        "CHANNELS": block_size(head_channels),
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
    }


@torch.library.custom_op("est_ocp::attention_functions", mutates_args=())
def attention_functions(
    query: Tensor, key: Tensor, to_points: Tensor, bias: Tensor, num_heads: int, scale: float
) -> Tensor:
    """Softmax-weighted means of every harmonic but the constant one, by point and head.

    Parameters
    ----------
    query, key : Tensor [N, I, C]
        Coefficients; a head has C / num_heads consecutive channels.
    to_points : Tensor [S, I], float32
        Harmonics at the points. No gradient.
    bias : Tensor [S, S], float32
        Added to the logits. No gradient.
    num_heads : int
    scale : float
        Of the logits.

    Returns
    -------
    Tensor [N, S, num_heads * (I - 1)]
        In the type of `query`.
    """
    query, key = _alike(query, key)
    sizes = _sizes(query, to_points, num_heads)
    num_in, num_points = sizes[:2]
    out = query.new_empty(len(query), num_points, num_heads * (num_in - 1))
    if out.numel():
        options = _blocks(sizes, FORWARD)
        grid = (len(query) * num_heads, triton.cdiv(num_points, options["ROWS"]))
        _forward_kernel[grid](
            query, key, to_points.contiguous(), bias.contiguous(), out, scale, *sizes, **options
        )
    return out


@torch.library.custom_op("est_ocp::attention_functions_backward", mutates_args=())
def attention_functions_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    to_points: Tensor,
    bias: Tensor,
    num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of `query` and `key` from that of the result [N, S, num_heads * (I - 1)]."""
    query, key = _alike(query, key)
    sizes = _sizes(query, to_points, num_heads)
    grad_query, grad_key = query.new_empty(query.shape), key.new_empty(key.shape)
    if grad_query.numel():
        options = _blocks(sizes, BACKWARD)
        _backward_kernel[(len(query) * num_heads,)](
            grad.contiguous(), query, key, to_points.contiguous(), bias.contiguous(), grad_query,
            grad_key, scale, *sizes, triton.cdiv(sizes[1], options["ROWS"]), **options,
        )  # fmt: skip
    return grad_query, grad_key


@attention_functions.register_fake
def _(query, key, to_points, bias, num_heads, scale):
    width = num_heads * (query.shape[1] - 1)
    return query.new_empty(query.shape[0], to_points.shape[0], width)


@attention_functions_backward.register_fake
def _(grad, query, key, to_points, bias, num_heads, scale):
    return query.new_empty(query.shape), key.new_empty(key.shape)


def _keep(ctx, inputs, output):
    query, key, to_points, bias, num_heads, scale = inputs
    ctx.save_for_backward(query, key, to_points, bias)
    ctx.num_heads, ctx.scale = num_heads, scale


def _backward(ctx, grad):
    gradients = attention_functions_backward(grad, *ctx.saved_tensors, ctx.num_heads, ctx.scale)
    return *gradients, None, None, None, None


attention_functions.register_autograd(_backward, setup_context=_keep)
