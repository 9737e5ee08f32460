"""SiLU of a feature on the sphere that is a sum of functions times vectors, fused.

Harmonics are functions that all nodes share; a node may have further ones of its own (those that
spherical attention makes). The values at the points, several times larger than the vectors, stay in
registers; the backward pass computes them again. Experts' weights multiply the coefficients before
these are written. In half precision the constant matrices are used as sums of two numbers, so that
their rounding does not cost equivariance. Sums have a fixed order.
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
    splits : int
        Programs that share the channels of a node; the backward pass has one.
    num_warps, num_stages : int
        Triton's options.
    """

    channels: int
    splits: int
    num_warps: int
    num_stages: int


#: The fastest on an H200 for features of degree 4 at 128 points.
FORWARD, BACKWARD = FunctionsLaunch(64, 1, 4, 1), FunctionsLaunch(64, 1, 4, 1)


@triton.jit
def _rest(matrix, high):
    """What rounding has taken off a matrix, in the rounded one's type."""
    return (matrix - high.to(tl.float32)).to(high.dtype)


@triton.jit
def _half_values(
    rows_ptr, bias_ptr, to_high, to_low, functions, i, j, c, channels, num_in, num_functions,
    HALVES: tl.constexpr,
):  # fmt: skip
    """Some channels of a node's rows, and half their values at the points."""
    x = load_matrix(rows_ptr, c, i, 1, channels, channels, num_in)
    y = load_matrix(rows_ptr + num_in * channels, c, j, 1, channels, channels, num_functions)
    bias = tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    z = tl.dot(y, functions)
    z = tl.dot(x, to_high, z)
    if HALVES:
        z = tl.dot(x, to_low, z)
    return y, 0.5 * (z + bias[:, None])


@triton.jit
def _gate(gate_ptr, c, channels, num_experts):
    """Weights of the experts to which channels belong."""
    expert = c // (channels // num_experts)
    return tl.load(gate_ptr + expert, mask=c < channels, other=0.0).to(tl.float32)


@triton.jit
def _forward_kernel(
    rows_ptr, functions_ptr, bias_ptr, gate_ptr, to_ptr, from_ptr, out_ptr,
    channels, num_in, num_functions, num_out, num_points, num_experts, tiles,
    CHANNELS: tl.constexpr, IN: tl.constexpr, FUNCTIONS: tl.constexpr, OUT: tl.constexpr,
    POINTS: tl.constexpr, HALVES: tl.constexpr, TANH: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """One program a node and a share of its channels."""
    kind: tl.constexpr = rows_ptr.dtype.element_ty
    node = tl.program_id(0).to(tl.int64)
    i, j, o = tl.arange(0, IN), tl.arange(0, FUNCTIONS), tl.arange(0, OUT)
    s = tl.arange(0, POINTS)
    to = load_matrix(to_ptr, i, s, 1, num_in, num_in, num_points)
    back = load_matrix(from_ptr, s, o, 1, num_points, num_points, num_out)
    to_high, back_high = to.to(kind), back.to(kind)
    to_low, back_low = _rest(to, to_high), _rest(back, back_high)
    functions = load_matrix(
        functions_ptr + node * num_points * num_functions,
        j, s, 1, num_functions, num_functions, num_points,
    )  # fmt: skip
    rows_ptr += node * (num_in + num_functions) * channels
    out_ptr += node * num_out * channels
    for tile in range(tiles):
        c = (tl.program_id(1) * tiles + tile) * CHANNELS + tl.arange(0, CHANNELS)
        in_channels = c < channels
        _, half = _half_values(
            rows_ptr, bias_ptr, to_high, to_low, functions, i, j, c, channels, num_in,
            num_functions, HALVES,
        )  # fmt: skip
        value = (half + half * tanh(half, TANH)).to(kind)
        out = tl.dot(value, back_high)
        if HALVES:
            out = tl.dot(value, back_low, out)
        if GATED:
            out *= _gate(gate_ptr + node * num_experts, c, channels, num_experts)[:, None]
        tl.store(
            out_ptr + o[None, :] * channels + c[:, None],
            out.to(kind),
            mask=in_channels[:, None] & (o < num_out)[None, :],
        )


@triton.jit
def _backward_kernel(
    grad_ptr, rows_ptr, functions_ptr, bias_ptr, gate_ptr, to_ptr, from_ptr, grad_rows_ptr,
    grad_functions_ptr, grad_gate_ptr,
    channels, num_in, num_functions, num_out, num_points, num_experts, tiles,
    CHANNELS: tl.constexpr, IN: tl.constexpr, FUNCTIONS: tl.constexpr, OUT: tl.constexpr,
    POINTS: tl.constexpr, HALVES: tl.constexpr, TANH: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """One program a node: gradients of its rows and functions, and of its gate by channel."""
    kind: tl.constexpr = rows_ptr.dtype.element_ty
    node = tl.program_id(0).to(tl.int64)
    i, j, o = tl.arange(0, IN), tl.arange(0, FUNCTIONS), tl.arange(0, OUT)
    s = tl.arange(0, POINTS)
    to = load_matrix(to_ptr, i, s, 1, num_in, num_in, num_points)
    back = load_matrix(from_ptr, o, s, num_points, 1, num_out, num_points).to(kind)
    to_high = to.to(kind)
    to_low = _rest(to, to_high)
    where_functions = node * num_points * num_functions
    functions = load_matrix(
        functions_ptr + where_functions, j, s, 1, num_functions, num_functions, num_points
    )
    grad_functions = tl.zeros((POINTS, FUNCTIONS), dtype=tl.float32)
    rows_ptr += node * (num_in + num_functions) * channels
    grad_rows_ptr += node * (num_in + num_functions) * channels
    grad_ptr += node * num_out * channels
    for tile in range(tiles):
        c = tile * CHANNELS + tl.arange(0, CHANNELS)
        in_channels = c < channels
        y, half = _half_values(
            rows_ptr, bias_ptr, to_high, to_low, functions, i, j, c, channels, num_in,
            num_functions, HALVES,
        )  # fmt: skip
        grad = load_matrix(grad_ptr, c, o, 1, channels, channels, num_out)
        t = tanh(half, TANH)
        grad_z = 0.5 * tl.dot(grad, back)
        if GATED:
            # SiLU is half (1 + t).
            by_channel = 2.0 * tl.sum(grad_z * (half + half * t), axis=1)
            tl.store(grad_gate_ptr + node * channels + c, by_channel, mask=in_channels)
            grad_z *= _gate(gate_ptr + node * num_experts, c, channels, num_experts)[:, None]
        # Twice the derivative of SiLU is 1 + t + half (1 - t^2).
        grad_z = (grad_z + grad_z * (t + half * (1.0 - t * t))).to(kind)
        grad_x = tl.dot(grad_z, tl.trans(to_high))
        tl.store(
            grad_rows_ptr + i[None, :] * channels + c[:, None],
            grad_x.to(kind),
            mask=in_channels[:, None] & (i < num_in)[None, :],
        )
        grad_y = tl.dot(grad_z, tl.trans(functions))
        tl.store(
            grad_rows_ptr + (num_in + j)[None, :] * channels + c[:, None],
            grad_y.to(kind),
            mask=in_channels[:, None] & (j < num_functions)[None, :],
        )
        grad_functions = tl.dot(tl.trans(grad_z), y, grad_functions)
    tl.store(
        grad_functions_ptr + where_functions + s[:, None] * num_functions + j[None, :],
        grad_functions.to(kind),
        mask=(s < num_points)[:, None] & (j < num_functions)[None, :],
    )


def _sizes(
    rows: Tensor, functions: Tensor, to_points: Tensor, from_points: Tensor, gate: Tensor | None
) -> list[int]:
    return [
        rows.shape[2], to_points.shape[1], functions.shape[2], from_points.shape[0],
        to_points.shape[0], 1 if gate is None else gate.shape[1],
    ]  # fmt: skip


def _blocks(
    rows: Tensor, sizes: list[int], gate: Tensor | None, launch: FunctionsLaunch
) -> dict[str, int]:
    _, num_in, num_functions, num_out, num_points, _ = sizes
    return {
        "CHANNELS": launch.channels,
        "IN": block_size(num_in),
        "FUNCTIONS": block_size(num_functions),
        "OUT": block_size(num_out),
        "POINTS": block_size(num_points),
        "HALVES": rows.element_size() == 2,
        "TANH": tanh_kind(),
        "GATED": gate is not None,
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
    gate: Tensor | None = None,
) -> Tensor:
    """Coefficients of ``silu(sum_r basis_sr rows_r + bias)``, the basis being all functions.

    Parameters
    ----------
    rows : Tensor [N, I + J, C]
        Vectors of the harmonics, then of the node's own functions.
    functions : Tensor [N, S, J]
        Of the type of `rows`.
    bias : Tensor [C]
    to_points : Tensor [S, I], float32
        Harmonics at the points, the first of them the constant one. No gradient.
    from_points : Tensor [I_out, S], float32
        No gradient.
    gate : Tensor [N, E], optional
        Factors of the result; each is for C / E consecutive channels.

    Returns
    -------
    Tensor [N, I_out, C]
        In the type of `rows`.
    """
    rows, functions = rows.contiguous(), functions.contiguous()
    sizes = _sizes(rows, functions, to_points, from_points, gate)
    out = rows.new_empty(rows.shape[0], from_points.shape[0], rows.shape[2])
    if out.numel():
        tiles = triton.cdiv(sizes[0], FORWARD.channels * FORWARD.splits)
        _forward_kernel[(rows.shape[0], FORWARD.splits)](
            rows, functions, bias.contiguous(), rows if gate is None else gate.contiguous(),
            to_points.contiguous(), from_points.contiguous(), out, *sizes, tiles,
            **_blocks(rows, sizes, gate, FORWARD),
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
    gate: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `rows`, `functions` and `gate` from that of the result [N, I_out, C].

    That of the gate has no elements where there is no gate.
    """
    rows, functions = rows.contiguous(), functions.contiguous()
    grad = grad.to(rows.dtype).contiguous()
    sizes = _sizes(rows, functions, to_points, from_points, gate)
    grad_rows, grad_functions = torch.empty_like(rows), torch.empty_like(functions)
    channels = 0 if gate is None else sizes[0]
    by_channel = torch.empty(len(rows), channels, dtype=torch.float32, device=rows.device)
    if grad_rows.numel():
        tiles = triton.cdiv(sizes[0], BACKWARD.channels)
        _backward_kernel[(rows.shape[0],)](
            grad, rows, functions, bias.contiguous(), rows if gate is None else gate.contiguous(),
            to_points.contiguous(), from_points.contiguous(), grad_rows, grad_functions,
            by_channel, *sizes, tiles, **_blocks(rows, sizes, gate, BACKWARD),
        )  # fmt: skip
    if gate is None:
        return grad_rows, grad_functions, by_channel
    grad_gate = by_channel.unflatten(1, (gate.shape[1], -1)).sum(dim=2)
    return grad_rows, grad_functions, grad_gate.to(gate.dtype)


@silu_on_functions.register_fake
def _(rows, functions, bias, to_points, from_points, gate=None):
    return rows.new_empty(rows.shape[0], from_points.shape[0], rows.shape[2])


@silu_on_functions_backward.register_fake
def _(grad, rows, functions, bias, to_points, from_points, gate):
    kind = torch.contiguous_format
    return (
        torch.empty_like(rows, memory_format=kind),
        torch.empty_like(functions, memory_format=kind),
        rows.new_empty(rows.shape[0], 0, dtype=torch.float32)
        if gate is None
        else torch.empty_like(gate, memory_format=kind),
    )


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    bias, gate = ctx.saved_tensors[2], ctx.saved_tensors[5]
    grad_rows, grad_functions, grad_gate = silu_on_functions_backward(grad, *ctx.saved_tensors)
    # The bias is one more vector of the constant function, which is the first one.
    grad_bias = grad_rows[:, 0].sum(dim=0, dtype=torch.float32).to(bias.dtype)
    grad_gate = None if gate is None else grad_gate
    return grad_rows, grad_functions, grad_bias, None, None, grad_gate


silu_on_functions.register_autograd(_backward, setup_context=_keep)
