"""SiLU of a feature on the sphere that is a sum of functions times vectors, fused.

Harmonics are functions that all nodes share; a node may have further ones of its own (those that
spherical attention makes). The values at the points, several times larger than the vectors, stay in
registers; the backward pass computes them again. In half precision the forward pass takes constant
matrices as sums of two numbers, so that their rounding does not cost equivariance. Sums have a
fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from est_ocp.nn.triton.loads import load_matrix
from est_ocp.nn.triton.support import block_size
from est_ocp.nn.triton.tanh import tanh, tanh_kind


class FunctionsLaunch(NamedTuple):
    """How a kernel is launched.

    Attributes
    ----------
    channels : int
        Channels at once, a power of two from 16.
    num_warps, num_stages : int
        Triton's options.
    """

    channels: int
    num_warps: int
    num_stages: int


#: The fastest on an H200 for features of degree 4 at 128 points; backward by the size of elements.
FORWARD = FunctionsLaunch(64, 4, 1)
BACKWARD = {2: FunctionsLaunch(64, 4, 1), 4: FunctionsLaunch(32, 4, 1)}


@triton.jit
def _rest(matrix, high):
    """What rounding has taken off a matrix, in the rounded one's type."""
    return (matrix - high.to(tl.float32)).to(high.dtype)


@triton.jit
def _forward_kernel(
    rows_ptr, functions_ptr, bias_ptr, to_ptr, from_ptr, out_ptr,
    num_nodes, num_experts, width, num_in, num_functions, num_out, num_points,
    CHANNELS: tl.constexpr, IN: tl.constexpr, FUNCTIONS: tl.constexpr, OUT: tl.constexpr,
    POINTS: tl.constexpr, HALVES: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    """One program a node."""
    kind: tl.constexpr = rows_ptr.dtype.element_ty
    node = tl.program_id(0).to(tl.int64)
    i, j, o = tl.arange(0, IN), tl.arange(0, FUNCTIONS), tl.arange(0, OUT)
    s = tl.arange(0, POINTS)
    channels = num_experts * width
    to = load_matrix(to_ptr, i, s, 1, num_in, num_in, num_points)
    back = load_matrix(from_ptr, s, o, 1, num_points, num_points, num_out)
    to_high, back_high = to.to(kind), back.to(kind)
    to_low, back_low = _rest(to, to_high), _rest(back, back_high)
    functions = load_matrix(
        functions_ptr + node * num_points * num_functions,
        j, s, 1, num_functions, num_functions, num_points,
    )  # fmt: skip
    rows_ptr += node * (num_in + num_functions) * channels
    blocks = tl.cdiv(width, CHANNELS)
    for tile in range(num_experts * blocks):
        expert = tile // blocks
        c = (tile % blocks) * CHANNELS + tl.arange(0, CHANNELS)
        inside = c < width
        first = expert * width
        x = load_matrix(rows_ptr + first, c, i, 1, channels, width, num_in)
        y = load_matrix(
            rows_ptr + first + num_in * channels, c, j, 1, channels, width, num_functions
        )
        bias = tl.load(bias_ptr + first + c, mask=inside, other=0.0).to(tl.float32)
        z = tl.dot(x, to_high, tl.dot(y, functions))
        if HALVES:
            z = tl.dot(x, to_low, z)
        half = 0.5 * (z + bias[:, None])
        value = (half + half * tanh(half, TANH)).to(kind)
        out = tl.dot(value, back_high)
        if HALVES:
            out = tl.dot(value, back_low, out)
        tl.store(
            out_ptr + (expert * num_nodes + node) * num_out * width
            + (c[:, None] + o[None, :] * width),
            out.to(kind),
            mask=inside[:, None] & (o < num_out)[None, :],
        )  # fmt: skip


@triton.jit
def _backward_kernel(
    grad_ptr, rows_ptr, functions_ptr, bias_ptr, to_ptr, from_ptr, grad_rows_ptr,
    grad_functions_ptr,
    num_nodes, num_experts, width, num_in, num_functions, num_out, num_points,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, FUNCTIONS: tl.constexpr, OUT: tl.constexpr,
    POINTS: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    """One program a node: gradients of its rows and functions.

    Harmonics and own functions are one matrix. It is rounded once: the rest of the harmonics is for
    the result's equivariance.
    """
    kind: tl.constexpr = rows_ptr.dtype.element_ty
    node = tl.program_id(0).to(tl.int64)
    r, j, o = tl.arange(0, ROWS), tl.arange(0, FUNCTIONS), tl.arange(0, OUT)
    s = tl.arange(0, POINTS)
    channels = num_experts * width
    num_rows = num_in + num_functions
    where_functions = node * num_points * num_functions
    own = tl.load(
        functions_ptr + where_functions + s[None, :] * num_functions + (r - num_in)[:, None],
        mask=((r >= num_in) & (r < num_rows))[:, None] & (s < num_points)[None, :],
        other=0.0,
    )
    basis = load_matrix(to_ptr, r, s, 1, num_in, num_in, num_points).to(kind) + own
    back = load_matrix(from_ptr, o, s, num_points, 1, num_out, num_points).to(kind)
    grad_functions = tl.zeros((POINTS, FUNCTIONS), dtype=tl.float32)
    rows_ptr += node * num_rows * channels
    grad_rows_ptr += node * num_rows * channels
    blocks = tl.cdiv(width, CHANNELS)
    for tile in range(num_experts * blocks):
        expert = tile // blocks
        c = (tile % blocks) * CHANNELS + tl.arange(0, CHANNELS)
        inside = c < width
        first = expert * width
        rows = load_matrix(rows_ptr + first, c, r, 1, channels, width, num_rows)
        # Again, as rows of their own.
        y = load_matrix(
            rows_ptr + first + num_in * channels, c, j, 1, channels, width, num_functions
        )
        bias = tl.load(bias_ptr + first + c, mask=inside, other=0.0).to(tl.float32)
        half = 0.5 * (tl.dot(rows, basis) + bias[:, None])
        grad = load_matrix(
            grad_ptr + (expert * num_nodes + node) * num_out * width, c, o, 1, width, width, num_out
        )
        t = tanh(half, TANH)
        grad_z = 0.5 * tl.dot(grad, back)
        # Twice the derivative of SiLU is 1 + t + half (1 - t^2).
        grad_z = (grad_z + grad_z * (t + half * (1.0 - t * t))).to(kind)
        tl.store(
            grad_rows_ptr + first + (r[None, :] * channels + c[:, None]),
            tl.dot(grad_z, tl.trans(basis)).to(kind),
            mask=inside[:, None] & (r < num_rows)[None, :],
        )
        grad_functions = tl.dot(tl.trans(grad_z), y, grad_functions)
    tl.store(
        grad_functions_ptr + where_functions + (s[:, None] * num_functions + j[None, :]),
        grad_functions.to(kind),
        mask=(s < num_points)[:, None] & (j < num_functions)[None, :],
    )


def _sizes(
    rows: Tensor, functions: Tensor, to_points: Tensor, from_points: Tensor, num_experts: int
) -> list[int]:
    return [
        rows.shape[0], num_experts, rows.shape[2] // num_experts, to_points.shape[1],
        functions.shape[2], from_points.shape[0], to_points.shape[0],
    ]  # fmt: skip


def _blocks(sizes: list[int], launch: FunctionsLaunch) -> dict[str, int]:
    _, _, width, _, num_functions, num_out, num_points = sizes
    return {
        "CHANNELS": min(launch.channels, block_size(width)),
        "FUNCTIONS": block_size(num_functions),
        "OUT": block_size(num_out),
        "POINTS": block_size(num_points),
        "TANH": tanh_kind(),
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
    }


@torch.library.custom_op("est_ocp::silu_on_functions", mutates_args=())
def silu_on_functions(
    rows: Tensor,
    functions: Tensor,
    bias: Tensor,
    to_points: Tensor,
    from_points: Tensor,
    num_experts: int,
) -> Tensor:
    """Coefficients of ``silu(sum_r basis_sr rows_r + bias)``, the basis being all functions.

    Parameters
    ----------
    rows : Tensor [N, I + J, E * H]
        Vectors of the harmonics, then of the node's own functions.
    functions : Tensor [N, S, J]
        Of the type of `rows`.
    bias : Tensor [E * H]
    to_points : Tensor [S, I], float32
        Harmonics at the points, the first of them the constant one. No gradient.
    from_points : Tensor [I_out, S], float32
        No gradient.
    num_experts : int
        Number E of experts, whose channels follow each other.

    Returns
    -------
    Tensor [E, N, I_out, H]
        In the type of `rows`; the channels of an expert lie together.
    """
    rows, functions = rows.contiguous(), functions.contiguous()
    sizes = _sizes(rows, functions, to_points, from_points, num_experts)
    out = rows.new_empty(num_experts, sizes[0], sizes[5], sizes[2])
    if out.numel():
        _forward_kernel[(rows.shape[0],)](
            rows, functions, bias.contiguous(), to_points.contiguous(), from_points.contiguous(),
            out, *sizes, IN=block_size(sizes[3]), HALVES=rows.element_size() == 2,
            **_blocks(sizes, FORWARD),
        )  # fmt: skip
    return out


@torch.library.custom_op("est_ocp::silu_on_functions_backward", mutates_args=())
def silu_on_functions_backward(
    grad: Tensor,
    rows: Tensor,
    functions: Tensor,
    bias: Tensor,
    to_points: Tensor,
    from_points: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of `rows` and `functions` from that of the result [E, N, I_out, H]."""
    rows, functions = rows.contiguous(), functions.contiguous()
    grad = grad.to(rows.dtype).contiguous()
    sizes = _sizes(rows, functions, to_points, from_points, len(grad))
    grad_rows, grad_functions = torch.empty_like(rows), torch.empty_like(functions)
    if grad_rows.numel():
        _backward_kernel[(rows.shape[0],)](
            grad, rows, functions, bias.contiguous(), to_points.contiguous(),
            from_points.contiguous(), grad_rows, grad_functions, *sizes,
            ROWS=block_size(sizes[3] + sizes[4]), **_blocks(sizes, BACKWARD[rows.element_size()]),
        )  # fmt: skip
    return grad_rows, grad_functions


@silu_on_functions.register_fake
def _(rows, functions, bias, to_points, from_points, num_experts):
    width = rows.shape[2] // num_experts
    return rows.new_empty(num_experts, rows.shape[0], from_points.shape[0], width)


@silu_on_functions_backward.register_fake
def _(grad, rows, functions, bias, to_points, from_points):
    kind = torch.contiguous_format
    return (
        torch.empty_like(rows, memory_format=kind),
        torch.empty_like(functions, memory_format=kind),
    )


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:5])


def _backward(ctx, grad):
    bias = ctx.saved_tensors[2]
    grad_rows, grad_functions = silu_on_functions_backward(grad, *ctx.saved_tensors)
    # The bias is one more vector of the constant function, which is the first one.
    grad_bias = grad_rows[:, 0].sum(dim=0, dtype=torch.float32).to(bias.dtype)
    return grad_rows, grad_functions, grad_bias, None, None, None


silu_on_functions.register_autograd(_backward, setup_context=_keep)
