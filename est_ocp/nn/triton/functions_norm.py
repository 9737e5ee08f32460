"""Norm over the sphere of a feature that is a sum of functions times vectors, fused.

The mean square over the sphere needs the feature at all points; those values stay in registers,
forward and backward, and nothing but the inputs is kept. Products of float32 numbers run as TF32.
Sums have a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from est_ocp.nn.triton.launch import dense_rows
from est_ocp.nn.triton.loads import load_matrix
from est_ocp.nn.triton.support import block_size, shared_memory

#: Warps of a program, the fastest on an H200 for features of degree 4 at 128 points.
FORWARD_WARPS, BACKWARD_WARPS = 4, 4

#: Channels at once in the backward pass, where a program can have :data:`LARGE_MEMORY` of shared
#: memory, and elsewhere.
BACKWARD_CHANNELS, LARGE_MEMORY, FEWER_CHANNELS = 64, 128 * 1024, 32


@triton.jit
def _matrix(ptr, rows, columns, row_stride, num_rows, num_columns):
    """Matrix of contiguous rows in float32, filled up with zeros."""
    return load_matrix(ptr, rows, columns, row_stride, 1, num_rows, num_columns).to(tl.float32)


@triton.jit
def _block(
    x_ptr, constant_ptr, own_ptr, i, j, c, channels, num_in, num_functions, factor,
    CONSTANT: tl.constexpr,
):  # fmt: skip
    """Some channels of a node's vectors."""
    x = factor * _matrix(x_ptr, i, c, channels, num_in, channels)
    if CONSTANT:
        constant = tl.load(constant_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
        x += tl.where((i == 0)[:, None], constant[None, :], 0.0)
    return x, _matrix(own_ptr, j, c, channels, num_functions, channels)


@triton.jit
def _less(x, mean, in_channels):
    """Rows less a number each, in those channels that there are."""
    return tl.where(in_channels[None, :], x - mean[:, None], 0.0)


@triton.jit
def _forward_kernel(
    x_ptr, constant_ptr, own_ptr, functions_ptr, to_ptr, points_ptr, weight_ptr, bias_ptr, out_ptr,
    factor, eps, channels, num_in, num_functions, num_points, x_stride, own_stride,
    IN: tl.constexpr, FUNCTIONS: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr,
    CONSTANT: tl.constexpr,
):  # fmt: skip
    """One program a node."""
    node = tl.program_id(0).to(tl.int64)
    i, j = tl.arange(0, IN), tl.arange(0, FUNCTIONS)
    s, c = tl.arange(0, POINTS), tl.arange(0, CHANNELS)
    x, own = _block(
        x_ptr + node * x_stride, constant_ptr + node * channels, own_ptr + node * own_stride,
        i, j, c, channels, num_in, num_functions, factor, CONSTANT,
    )  # fmt: skip
    x = _less(x, tl.sum(x, axis=1) / channels, c < channels)
    own = _less(own, tl.sum(own, axis=1) / channels, c < channels)
    to = _matrix(to_ptr, s, i, num_in, num_points, num_in)
    functions = _matrix(
        functions_ptr + node * num_points * num_functions,
        s, j, num_functions, num_points, num_functions,
    )  # fmt: skip
    f = tl.dot(functions, own, tl.dot(to, x))
    weights = tl.load(points_ptr + s, mask=s < num_points, other=0.0)
    variance = tl.sum(tl.sum(f * f, axis=1) * weights) / channels
    scale = tl.load(weight_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    scale *= tl.rsqrt(variance + eps)
    bias = tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    x = x * scale[None, :] + tl.where((i == 0)[:, None], bias[None, :], 0.0)
    own *= scale[None, :]
    out_ptr += node * (num_in + num_functions) * channels
    kind: tl.constexpr = out_ptr.dtype.element_ty
    in_channels = (c < channels)[None, :]
    where = i[:, None] * channels + c[None, :]
    tl.store(out_ptr + where, x.to(kind), mask=(i < num_in)[:, None] & in_channels)
    where = (num_in + j)[:, None] * channels + c[None, :]
    tl.store(out_ptr + where, own.to(kind), mask=(j < num_functions)[:, None] & in_channels)


@triton.jit
def _backward_kernel(
    grad_ptr, x_ptr, constant_ptr, own_ptr, functions_ptr, to_ptr, points_ptr, weight_ptr,
    grad_x_ptr, grad_constant_ptr, grad_own_ptr, grad_functions_ptr, grad_weight_ptr,
    factor, eps, channels, num_in, num_functions, num_points, x_stride, own_stride,
    IN: tl.constexpr, FUNCTIONS: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr,
    CONSTANT: tl.constexpr,
):  # fmt: skip
    """One program a node: all gradients, that of the weight for the node alone.

    Three times through the channels, some at a time: for means, for the variance and its
    derivative, and for the gradients.
    """
    node = tl.program_id(0).to(tl.int64)
    i, j, s = tl.arange(0, IN), tl.arange(0, FUNCTIONS), tl.arange(0, POINTS)
    block = tl.arange(0, CHANNELS)
    blocks = tl.cdiv(channels, CHANNELS)
    x_ptr += node * x_stride
    constant_ptr += node * channels
    own_ptr += node * own_stride
    grad_ptr += node * (num_in + num_functions) * channels
    grad_own_part = grad_ptr + num_in * channels
    mean_x, mean_own = tl.zeros((IN,), tl.float32), tl.zeros((FUNCTIONS,), tl.float32)
    mean_grad_x, mean_grad_own = mean_x, mean_own
    for number in range(blocks):
        c = number * CHANNELS + block
        x, own = _block(
            x_ptr, constant_ptr, own_ptr, i, j, c, channels, num_in, num_functions, factor, CONSTANT
        )
        weight = tl.load(weight_ptr + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
        grad = _matrix(grad_ptr, i, c, channels, num_in, channels)
        grad_own = _matrix(grad_own_part, j, c, channels, num_functions, channels)
        mean_x += tl.sum(x, axis=1) / channels
        mean_own += tl.sum(own, axis=1) / channels
        mean_grad_x += tl.sum(grad * weight, axis=1) / channels
        mean_grad_own += tl.sum(grad_own * weight, axis=1) / channels
    to = _matrix(to_ptr, s, i, num_in, num_points, num_in)
    where_functions = node * num_points * num_functions
    functions = _matrix(
        functions_ptr + where_functions, s, j, num_functions, num_points, num_functions
    )
    weights = tl.load(points_ptr + s, mask=s < num_points, other=0.0)
    squares = tl.zeros((POINTS,), tl.float32)
    products = tl.zeros((CHANNELS,), tl.float32)
    for number in range(blocks):
        c = number * CHANNELS + block
        x, own = _block(
            x_ptr, constant_ptr, own_ptr, i, j, c, channels, num_in, num_functions, factor, CONSTANT
        )
        x, own = _less(x, mean_x, c < channels), _less(own, mean_own, c < channels)
        f = tl.dot(functions, own, tl.dot(to, x))
        squares += tl.sum(f * f, axis=1)
        weight = tl.load(weight_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
        grad = _matrix(grad_ptr, i, c, channels, num_in, channels)
        grad_own = _matrix(grad_own_part, j, c, channels, num_functions, channels)
        products += weight * (tl.sum(grad * x, axis=0) + tl.sum(grad_own * own, axis=0))
    root = tl.rsqrt(tl.sum(squares * weights) / channels + eps)
    # Of f / 2, at every point, by the variance.
    through = -root * root * root * tl.sum(products) / channels
    grad_functions = tl.zeros((POINTS, FUNCTIONS), tl.float32)
    for number in range(blocks):
        c = number * CHANNELS + block
        in_channels = c < channels
        x, own = _block(
            x_ptr, constant_ptr, own_ptr, i, j, c, channels, num_in, num_functions, factor, CONSTANT
        )
        x, own = _less(x, mean_x, in_channels), _less(own, mean_own, in_channels)
        grad = _matrix(grad_ptr, i, c, channels, num_in, channels)
        grad_own = _matrix(grad_own_part, j, c, channels, num_functions, channels)
        by_channel = tl.sum(grad * x, axis=0) + tl.sum(grad_own * own, axis=0)
        tl.store(grad_weight_ptr + node * channels + c, root * by_channel, mask=in_channels)
        f = tl.dot(functions, own, tl.dot(to, x)) * (through * weights)[:, None]
        grad_functions = tl.dot(f, tl.trans(own), grad_functions)
        weight = tl.load(weight_ptr + c, mask=in_channels, other=0.0).to(tl.float32)[None, :]
        # The mean of f over the channels is zero: what comes through it needs no centring.
        grad = root * _less(grad * weight, mean_grad_x, in_channels)
        grad = tl.dot(tl.trans(to), f, grad)
        if CONSTANT:
            constant = tl.sum(tl.where((i == 0)[:, None], grad, 0.0), axis=0)
            tl.store(
                grad_constant_ptr + node * channels + c,
                constant.to(grad_constant_ptr.dtype.element_ty),
                mask=in_channels,
            )
        tl.store(
            grad_x_ptr + node * num_in * channels + i[:, None] * channels + c[None, :],
            (factor * grad).to(grad_x_ptr.dtype.element_ty),
            mask=(i < num_in)[:, None] & in_channels[None, :],
        )
        grad_own = root * _less(grad_own * weight, mean_grad_own, in_channels)
        grad_own = tl.dot(tl.trans(functions), f, grad_own)
        tl.store(
            grad_own_ptr + node * num_functions * channels + j[:, None] * channels + c[None, :],
            grad_own.to(grad_own_ptr.dtype.element_ty),
            mask=(j < num_functions)[:, None] & in_channels[None, :],
        )
    tl.store(
        grad_functions_ptr + where_functions + s[:, None] * num_functions + j[None, :],
        grad_functions.to(grad_functions_ptr.dtype.element_ty),
        mask=(s < num_points)[:, None] & (j < num_functions)[None, :],
    )


def _sizes(x: Tensor, own: Tensor, to_points: Tensor) -> list[int]:
    num_points, num_in = to_points.shape
    return [x.shape[2], num_in, own.shape[1], num_points, x.stride(0), own.stride(0)]


def _blocks(sizes: list[int], constant: Tensor | None, warps: int, largest: int) -> dict[str, int]:
    channels, num_in, num_functions, num_points = sizes[:4]
    return {
        "IN": block_size(num_in),
        "FUNCTIONS": block_size(max(1, num_functions)),
        "POINTS": block_size(num_points),
        "CHANNELS": min(block_size(channels), largest),
        "CONSTANT": constant is not None,
        "num_warps": warps,
        "num_stages": 1,
    }


@torch.library.custom_op("est_ocp::functions_norm", mutates_args=())
def functions_norm(
    x: Tensor,
    constant: Tensor | None,
    own: Tensor,
    functions: Tensor,
    to_points: Tensor,
    point_weights: Tensor,
    weight: Tensor,
    bias: Tensor,
    factor: float,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """Vectors of ``(f - mean_c f) / sqrt(mean over sphere and channels) * weight + bias``.

    ``f_s = sum_i Y_si (factor x_i + [i = 0] constant) + sum_j functions_sj own_j``.

    Parameters
    ----------
    x : Tensor [N, I, C]
    constant : Tensor [N, C], optional
    own : Tensor [N, J, C]
        J may be 0.
    functions : Tensor [N, S, J]
    to_points : Tensor [S, I], float32
        Harmonics at the points, the first of them the constant one. No gradient.
    point_weights : Tensor [S], float32
        Adding up to one. No gradient.
    weight, bias : Tensor [C]
    factor, eps : float
    dtype : torch.dtype
        Of the result.

    Returns
    -------
    Tensor [N, I + J, C]
        Vectors of the harmonics, then of the node's own functions.
    """
    x, own = dense_rows(x), dense_rows(own)
    sizes = _sizes(x, own, to_points)
    out = torch.empty(len(x), sizes[1] + sizes[2], sizes[0], dtype=dtype, device=x.device)
    if out.numel():
        _forward_kernel[(len(x),)](
            x, x if constant is None else constant.contiguous(), own, functions.contiguous(),
            to_points.contiguous(), point_weights.contiguous(), weight, bias, out, factor, eps,
            *sizes, **_blocks(sizes, constant, FORWARD_WARPS, sizes[0] * 2),
        )  # fmt: skip
    return out


@torch.library.custom_op("est_ocp::functions_norm_backward", mutates_args=())
def functions_norm_backward(
    grad: Tensor,
    x: Tensor,
    constant: Tensor | None,
    own: Tensor,
    functions: Tensor,
    to_points: Tensor,
    point_weights: Tensor,
    weight: Tensor,
    factor: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `x`, `constant`, `own`, `functions` and, by node, of `weight`.

    That of the constant has no elements where there is no constant.
    """
    x, own, functions = dense_rows(x), dense_rows(own), functions.contiguous()
    sizes = _sizes(x, own, to_points)
    out = (
        x.new_empty(x.shape),
        x.new_empty(0) if constant is None else constant.new_empty(constant.shape),
        own.new_empty(own.shape),
        torch.empty_like(functions),
        torch.empty(len(x), sizes[0], dtype=torch.float32, device=x.device),
    )
    if out[0].numel():
        large = shared_memory(x) >= LARGE_MEMORY
        width = BACKWARD_CHANNELS if large else FEWER_CHANNELS
        _backward_kernel[(len(x),)](
            grad.contiguous(), x, x if constant is None else constant.contiguous(), own,
            functions, to_points.contiguous(), point_weights.contiguous(), weight, *out, factor,
            eps, *sizes, **_blocks(sizes, constant, BACKWARD_WARPS, width),
        )  # fmt: skip
    return out


@functions_norm.register_fake
def _(x, constant, own, functions, to_points, point_weights, weight, bias, factor, eps, dtype):
    rows = x.shape[1] + own.shape[1]
    return x.new_empty(x.shape[0], rows, x.shape[2], dtype=dtype)


@functions_norm_backward.register_fake
def _(grad, x, constant, own, functions, to_points, point_weights, weight, factor, eps):
    return (
        x.new_empty(x.shape),
        x.new_empty(0) if constant is None else constant.new_empty(constant.shape),
        own.new_empty(own.shape),
        functions.new_empty(functions.shape),
        x.new_empty(x.shape[0], x.shape[2], dtype=torch.float32),
    )


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:7])
    ctx.bias_dtype = inputs[7].dtype
    ctx.factor, ctx.eps = inputs[8:10]


def _backward(ctx, grad):
    saved = ctx.saved_tensors
    x, constant, own, functions, by_node = functions_norm_backward(
        grad, *saved, ctx.factor, ctx.eps
    )
    constant = None if saved[1] is None else constant
    weight = by_node.sum(dim=0).to(saved[6].dtype)
    bias = grad[:, 0].sum(dim=0, dtype=torch.float32).to(ctx.bias_dtype)
    return x, constant, own, functions, None, None, weight, bias, None, None, None


functions_norm.register_autograd(_backward, setup_context=_keep)
