"""SiLU of a function on the sphere, from coefficients to coefficients, fused.

The values at the points, several times larger than the coefficients, stay in registers; the
backward pass computes them again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from est_ocp.nn.triton.support import block_size


@triton.jit
def _load_matrix(ptr, num_rows, num_columns, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    rows = tl.arange(0, BLOCK_R)[:, None]
    columns = tl.arange(0, BLOCK_C)[None, :]
    return tl.load(
        ptr + rows * num_columns + columns,
        mask=(rows < num_rows) & (columns < num_columns),
        other=0.0,
    )


@triton.jit
def _offsets(channels, size, num_rows, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr):
    """Where the rows of a block of (edge, channel) pairs lie in a tensor [E, num_rows, C]."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = tl.arange(0, BLOCK_R)
    where = (m // channels)[:, None] * num_rows * channels + rows[None, :] * channels
    where += (m % channels)[:, None]
    return where, (m[:, None] < size) & (rows[None, :] < num_rows)


@triton.jit
def _forward_kernel(
    x_ptr, to_ptr, from_ptr, out_ptr, size, channels, num_in, num_out, num_points,
    BLOCK_M: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Rows are (edge, channel) pairs: ``out = silu(x T) F`` with T [in, S] and F [S, out]."""
    where, mask = _offsets(channels, size, num_in, BLOCK_M, BLOCK_IN)
    x = tl.load(x_ptr + where, mask=mask, other=0.0)
    to_points = _load_matrix(to_ptr, num_in, num_points, BLOCK_IN, BLOCK_S)
    from_points = _load_matrix(from_ptr, num_points, num_out, BLOCK_S, BLOCK_OUT)
    values = tl.dot(x, to_points)
    values = values * tl.sigmoid(values)
    out = tl.dot(values.to(x.dtype), from_points)
    where, mask = _offsets(channels, size, num_out, BLOCK_M, BLOCK_OUT)
    tl.store(out_ptr + where, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    x_ptr, grad_ptr, to_ptr, from_ptr, out_ptr, size, channels, num_in, num_out, num_points,
    BLOCK_M: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Gradient of the input: ``(grad F^T * silu'(x T)) T^T``."""
    where_in, mask_in = _offsets(channels, size, num_in, BLOCK_M, BLOCK_IN)
    where_out, mask_out = _offsets(channels, size, num_out, BLOCK_M, BLOCK_OUT)
    x = tl.load(x_ptr + where_in, mask=mask_in, other=0.0)
    grad = tl.load(grad_ptr + where_out, mask=mask_out, other=0.0)
    to_points = _load_matrix(to_ptr, num_in, num_points, BLOCK_IN, BLOCK_S)
    from_points = _load_matrix(from_ptr, num_points, num_out, BLOCK_S, BLOCK_OUT)
    values = tl.dot(x, to_points)
    sigmoid = tl.sigmoid(values)
    slope = sigmoid * (1.0 + values * (1.0 - sigmoid))
    grad_values = tl.dot(grad, tl.trans(from_points)) * slope
    out = tl.dot(grad_values.to(x.dtype), tl.trans(to_points))
    tl.store(out_ptr + where_in, out.to(out_ptr.dtype.element_ty), mask=mask_in)


def _launch_arguments(
    x: Tensor, num_out: int, num_points: int
) -> tuple[tuple[int], dict[str, int]]:
    blocks = {
        "BLOCK_M": 64,
        "BLOCK_IN": block_size(x.shape[1]),
        "BLOCK_OUT": block_size(num_out),
        "BLOCK_S": block_size(num_points),
    }
    return (triton.cdiv(x.shape[0] * x.shape[2], blocks["BLOCK_M"]),), blocks


@torch.library.custom_op("est_ocp::silu_on_points", mutates_args=())
def silu_on_points(x: Tensor, to_points: Tensor, from_points: Tensor) -> Tensor:
    """Evaluate on points, apply SiLU, project back.

    Parameters
    ----------
    x : Tensor [E, R, C]
    to_points : Tensor [S, R]
    from_points : Tensor [R_out, S]
        Both in the type of `x`; they get no gradients.

    Returns
    -------
    Tensor [E, R_out, C]
    """
    x = x.contiguous()
    to_matrix, from_matrix = to_points.t().contiguous(), from_points.t().contiguous()
    num_out, num_points = from_points.shape
    out = x.new_empty(x.shape[0], num_out, x.shape[2])
    if x.shape[0]:
        grid, blocks = _launch_arguments(x, num_out, num_points)
        _forward_kernel[grid](
            x, to_matrix, from_matrix, out, x.shape[0] * x.shape[2], x.shape[2], x.shape[1],
            num_out, num_points, num_warps=4, **blocks,
        )  # fmt: skip
    return out


@torch.library.custom_op("est_ocp::silu_on_points_backward", mutates_args=())
def silu_on_points_backward(
    grad: Tensor, x: Tensor, to_points: Tensor, from_points: Tensor
) -> Tensor:
    """Gradient [E, R, C] of :func:`silu_on_points` from that of its result [E, R_out, C]."""
    x, grad = x.contiguous(), grad.to(x.dtype).contiguous()
    to_matrix, from_matrix = to_points.t().contiguous(), from_points.t().contiguous()
    num_out, num_points = from_points.shape
    out = torch.empty_like(x)
    if x.shape[0]:
        grid, blocks = _launch_arguments(x, num_out, num_points)
        _backward_kernel[grid](
            x, grad, to_matrix, from_matrix, out, x.shape[0] * x.shape[2], x.shape[2], x.shape[1],
            num_out, num_points, num_warps=4, **blocks,
        )  # fmt: skip
    return out


@silu_on_points.register_fake
def _(x, to_points, from_points):
    return x.new_empty(x.shape[0], from_points.shape[0], x.shape[2])


@silu_on_points_backward.register_fake
def _(grad, x, to_points, from_points):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):
    return silu_on_points_backward(grad, *ctx.saved_tensors), None, None


silu_on_points.register_autograd(_differentiate, setup_context=_keep)
