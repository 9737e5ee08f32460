"""Norm over the sphere of a feature that is a sum of functions times vectors, fused.

The mean square over the sphere needs the feature at all points; those values stay in registers,
forward and backward, and nothing but the inputs, means and one number a node is kept. Products run
as TF32, those of the backward pass in half precision where the result is. Sums have a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from est_ocp.nn.triton.launch import dense_rows
from est_ocp.nn.triton.loads import load_matrix
from est_ocp.nn.triton.support import SMALLEST_BLOCK, block_size

#: Values at points that a program has at once, and for how many points it has four warps instead of
#: two: the fastest on an H200 for features of degree 4 at 128 points.
FORWARD_VALUES, BACKWARD_VALUES, MANY_POINTS = 32 * 128, 64 * 128, 64


@triton.jit
def _two(first_ptr, second_ptr, r, c, channels, num_first, num_second):
    """Rows of two matrices of contiguous rows below each other in float32, then zeros."""
    first = load_matrix(first_ptr, r, c, channels, 1, num_first, channels).to(tl.float32)
    second = tl.load(
        second_ptr + (r - num_first)[:, None] * channels + c[None, :],
        mask=((r >= num_first) & (r < num_first + num_second))[:, None] & (c < channels)[None, :],
        other=0.0,
    )
    return first + second.to(tl.float32)


@triton.jit
def _rows(
    x_ptr, constant_ptr, own_ptr, r, c, channels, num_in, num_functions, factor,
    CONSTANT: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """Some channels of a node's vectors: of the harmonics, then of its own functions."""
    if OWN:
        rows = _two(x_ptr, own_ptr, r, c, channels, num_in, num_functions)
        rows *= tl.where(r < num_in, factor, 1.0)[:, None]
    else:
        rows = factor * load_matrix(x_ptr, r, c, channels, 1, num_in, channels).to(tl.float32)
    if CONSTANT:
        constant = tl.load(constant_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
        rows += tl.where((r == 0)[:, None], constant[None, :], 0.0)
    return rows


@triton.jit
def _basis(
    to_ptr, functions_ptr, s, r, num_in, num_functions, num_points, OWN: tl.constexpr
):  # fmt: skip
    """Harmonics and a node's own functions at the points, [POINTS, ROWS]."""
    basis = load_matrix(to_ptr, s, r, num_in, 1, num_points, num_in).to(tl.float32)
    if OWN:
        own = tl.load(
            functions_ptr + s[:, None] * num_functions + (r - num_in)[None, :],
            mask=(s < num_points)[:, None] & ((r >= num_in) & (r < num_in + num_functions))[None],
            other=0.0,
        )
        basis += own.to(tl.float32)
    return basis


@triton.jit
def _less(x, mean, in_channels):
    """Rows less a number each, in those channels that there are."""
    return tl.where(in_channels[None, :], x - mean[:, None], 0.0)


@triton.jit
def _forward_kernel(
    x_ptr, constant_ptr, own_ptr, functions_ptr, to_ptr, points_ptr, weight_ptr, bias_ptr, out_ptr,
    mean_ptr, root_ptr,
    factor, eps, channels, num_in, num_functions, num_points, x_stride, own_stride,
    ROWS: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr, CONSTANT: tl.constexpr,
    OWN: tl.constexpr,
):  # fmt: skip
    """One program a node, three times through the channels, some at a time."""
    node = tl.program_id(0).to(tl.int64)
    r, s, block = tl.arange(0, ROWS), tl.arange(0, POINTS), tl.arange(0, CHANNELS)
    blocks = tl.cdiv(channels, CHANNELS)
    num_rows = num_in + num_functions
    x_ptr += node * x_stride
    constant_ptr += node * channels
    own_ptr += node * own_stride
    mean = tl.zeros((ROWS,), tl.float32)
    for number in range(blocks):
        rows = _rows(
            x_ptr, constant_ptr, own_ptr, r, number * CHANNELS + block, channels, num_in,
            num_functions, factor, CONSTANT, OWN,
        )  # fmt: skip
        mean += tl.sum(rows, axis=1) / channels
    basis = _basis(
        to_ptr, functions_ptr + node * num_points * num_functions, s, r, num_in, num_functions,
        num_points, OWN,
    )  # fmt: skip
    squares = tl.zeros((POINTS,), tl.float32)
    for number in range(blocks):
        c = number * CHANNELS + block
        rows = _rows(
            x_ptr, constant_ptr, own_ptr, r, c, channels, num_in, num_functions, factor, CONSTANT,
            OWN,
        )  # fmt: skip
        f = tl.dot(basis, _less(rows, mean, c < channels))
        squares += tl.sum(f * f, axis=1)
    weights = tl.load(points_ptr + s, mask=s < num_points, other=0.0)
    root = tl.rsqrt(tl.sum(squares * weights) / channels + eps)
    tl.store(mean_ptr + node * num_rows + r, mean, mask=r < num_rows)
    tl.store(root_ptr + node, root)
    for number in range(blocks):
        c = number * CHANNELS + block
        in_channels = c < channels
        rows = _rows(
            x_ptr, constant_ptr, own_ptr, r, c, channels, num_in, num_functions, factor, CONSTANT,
            OWN,
        )  # fmt: skip
        scale = tl.load(weight_ptr + c, mask=in_channels, other=0.0).to(tl.float32) * root
        bias = tl.load(bias_ptr + c, mask=in_channels, other=0.0).to(tl.float32)
        rows = _less(rows, mean, in_channels) * scale[None, :]
        rows += tl.where((r == 0)[:, None], bias[None, :], 0.0)
        tl.store(
            out_ptr + node * num_rows * channels + (r[:, None] * channels + c[None, :]),
            rows.to(out_ptr.dtype.element_ty),
            mask=(r < num_rows)[:, None] & in_channels[None, :],
        )


@triton.jit
def _backward_kernel(
    grad_ptr, x_ptr, constant_ptr, own_ptr, functions_ptr, to_ptr, points_ptr, weight_ptr,
    mean_ptr, root_ptr,
    grad_x_ptr, grad_constant_ptr, grad_own_ptr, grad_functions_ptr, grad_weight_ptr,
    factor, channels, num_in, num_functions, num_points, x_stride, own_stride,
    ROWS: tl.constexpr, FUNCTIONS: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr,
    CONSTANT: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """One program a node: all gradients, that of the weight for the node alone.

    Twice through the channels, some at a time: for what all channels share, and for the gradients.
    """
    kind: tl.constexpr = grad_ptr.dtype.element_ty
    node = tl.program_id(0).to(tl.int64)
    r, j, s = tl.arange(0, ROWS), tl.arange(0, FUNCTIONS), tl.arange(0, POINTS)
    block = tl.arange(0, CHANNELS)
    blocks = tl.cdiv(channels, CHANNELS)
    num_rows = num_in + num_functions
    x_ptr += node * x_stride
    constant_ptr += node * channels
    own_ptr += node * own_stride
    grad_ptr += node * num_rows * channels
    mean_ptr += node * num_rows
    mean = tl.load(mean_ptr + r, mask=r < num_rows, other=0.0)
    root = tl.load(root_ptr + node)
    mean_grad = tl.zeros((ROWS,), tl.float32)
    products = tl.zeros((CHANNELS,), tl.float32)
    for number in range(blocks):
        c = number * CHANNELS + block
        rows = _rows(
            x_ptr, constant_ptr, own_ptr, r, c, channels, num_in, num_functions, factor, CONSTANT,
            OWN,
        )  # fmt: skip
        grad = load_matrix(grad_ptr, r, c, channels, 1, num_rows, channels).to(tl.float32)
        by_channel = tl.sum(grad * (rows - mean[:, None]), axis=0)
        tl.store(grad_weight_ptr + node * channels + c, root * by_channel, mask=c < channels)
        weight = tl.load(weight_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
        products += weight * by_channel
        mean_grad += tl.sum(grad * weight[None, :], axis=1) / channels
    basis = _basis(
        to_ptr, functions_ptr + node * num_points * num_functions, s, r, num_in, num_functions,
        num_points, OWN,
    )  # fmt: skip
    basis = basis.to(kind)
    # Of f / 2 by the variance. Factors of the products in half precision stay of order one.
    through = -root * root * root * tl.sum(products) / channels
    weights = tl.load(points_ptr + s, mask=s < num_points, other=0.0)
    grad_functions = tl.zeros((POINTS, FUNCTIONS), tl.float32)
    for number in range(blocks):
        c = number * CHANNELS + block
        in_channels = c < channels
        rows = _rows(
            x_ptr, constant_ptr, own_ptr, r, c, channels, num_in, num_functions, factor, CONSTANT,
            OWN,
        )  # fmt: skip
        f = tl.dot(basis, _less(rows, mean, in_channels).to(kind))
        f = (f * weights[:, None]).to(kind)
        if OWN:
            own = load_matrix(own_ptr, j, c, channels, 1, num_functions, channels).to(tl.float32)
            mean_own = tl.load(mean_ptr + num_in + j, mask=j < num_functions, other=0.0)
            own = _less(own, mean_own, in_channels).to(kind)
            grad_functions = tl.dot(f, tl.trans(own), grad_functions)
        weight = tl.load(weight_ptr + c, mask=in_channels, other=0.0).to(tl.float32)[None, :]
        grad = load_matrix(grad_ptr, r, c, channels, 1, num_rows, channels).to(tl.float32)
        # The mean of f over the channels is zero: what comes through it needs no centring.
        grad = root * _less(grad * weight, mean_grad, in_channels)
        grad += through * tl.dot(tl.trans(basis), f)
        if CONSTANT:
            constant = tl.sum(tl.where((r == 0)[:, None], grad, 0.0), axis=0)
            tl.store(
                grad_constant_ptr + node * channels + c,
                constant.to(grad_constant_ptr.dtype.element_ty),
                mask=in_channels,
            )
        where = r[:, None] * channels + c[None, :]
        tl.store(
            grad_x_ptr + node * num_in * channels + where,
            (factor * grad).to(grad_x_ptr.dtype.element_ty),
            mask=(r < num_in)[:, None] & in_channels[None, :],
        )
        if OWN:
            tl.store(
                grad_own_ptr + node * num_functions * channels - num_in * channels + where,
                grad.to(grad_own_ptr.dtype.element_ty),
                mask=((r >= num_in) & (r < num_rows))[:, None] & in_channels[None, :],
            )
    if OWN:
        tl.store(
            grad_functions_ptr + node * num_points * num_functions
            + (s[:, None] * num_functions + j[None, :]),
            (through * grad_functions).to(grad_functions_ptr.dtype.element_ty),
            mask=(s < num_points)[:, None] & (j < num_functions)[None, :],
        )  # fmt: skip


def _sizes(x: Tensor, own: Tensor, to_points: Tensor) -> list[int]:
    num_points, num_in = to_points.shape
    return [x.shape[2], num_in, own.shape[1], num_points, x.stride(0), own.stride(0)]


def _blocks(sizes: list[int], constant: Tensor | None, values: int) -> dict[str, int]:
    channels, num_in, num_functions, num_points = sizes[:4]
    points = block_size(num_points)
    return {
        "ROWS": block_size(num_in + num_functions),
        "POINTS": points,
        "CHANNELS": min(block_size(channels), max(SMALLEST_BLOCK, values // points)),
        "CONSTANT": constant is not None,
        "OWN": num_functions > 0,
        "num_warps": 4 if points >= MANY_POINTS else 2,
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
) -> tuple[Tensor, Tensor, Tensor]:
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
        No gradient. Without own functions, any matrix and weights of which the sum of weighed
        squares is the mean square over the sphere do.
    weight, bias : Tensor [C]
    factor, eps : float
    dtype : torch.dtype
        Of the result.

    Returns
    -------
    out : Tensor [N, I + J, C]
        Vectors of the harmonics, then of the node's own functions.
    mean : Tensor [N, I + J], float32
        Of the feature's vectors over the channels. No gradient, as of `root`.
    root : Tensor [N], float32
        One over the standard deviation.
    """
    x, own = dense_rows(x), dense_rows(own)
    sizes = _sizes(x, own, to_points)
    out = torch.empty(len(x), sizes[1] + sizes[2], sizes[0], dtype=dtype, device=x.device)
    mean = torch.empty(out.shape[:2], dtype=torch.float32, device=x.device)
    root = torch.empty(len(x), dtype=torch.float32, device=x.device)
    if out.numel():
        _forward_kernel[(len(x),)](
            x, x if constant is None else constant.contiguous(), own, functions.contiguous(),
            to_points.contiguous(), point_weights.contiguous(), weight, bias, out, mean, root,
            factor, eps, *sizes, **_blocks(sizes, constant, FORWARD_VALUES),
        )  # fmt: skip
    return out, mean, root


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
    mean: Tensor,
    root: Tensor,
    factor: float,
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
        _backward_kernel[(len(x),)](
            grad.contiguous(), x, x if constant is None else constant.contiguous(), own,
            functions, to_points.contiguous(), point_weights.contiguous(), weight, mean, root,
            *out, factor, *sizes, FUNCTIONS=block_size(max(1, sizes[2])),
            **_blocks(sizes, constant, BACKWARD_VALUES),
        )  # fmt: skip
    return out


@functions_norm.register_fake
def _(x, constant, own, functions, to_points, point_weights, weight, bias, factor, eps, dtype):
    rows = x.shape[1] + own.shape[1]
    return (
        x.new_empty(x.shape[0], rows, x.shape[2], dtype=dtype),
        x.new_empty(x.shape[0], rows, dtype=torch.float32),
        x.new_empty(x.shape[0], dtype=torch.float32),
    )


@functions_norm_backward.register_fake
def _(grad, x, constant, own, functions, to_points, point_weights, weight, mean, root, factor):
    return (
        x.new_empty(x.shape),
        x.new_empty(0) if constant is None else constant.new_empty(constant.shape),
        own.new_empty(own.shape),
        functions.new_empty(functions.shape),
        x.new_empty(x.shape[0], x.shape[2], dtype=torch.float32),
    )


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:7], *output[1:])
    ctx.bias_dtype = inputs[7].dtype
    ctx.factor = inputs[8]


def _backward(ctx, grad, *_):
    saved = ctx.saved_tensors
    x, constant, own, functions, by_node = functions_norm_backward(grad, *saved, ctx.factor)
    constant = None if saved[1] is None else constant
    weight = by_node.sum(dim=0).to(saved[6].dtype)
    bias = grad[:, 0].sum(dim=0, dtype=torch.float32).to(ctx.bias_dtype)
    return x, constant, own, functions, None, None, weight, bias, None, None, None


functions_norm.register_autograd(_backward, setup_context=_keep)
