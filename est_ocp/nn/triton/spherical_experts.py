"""Gate-weighted feed-forward experts on the points of the sphere, fused.

The hidden activations, several times larger than the features, stay in registers in the forward
pass and are not kept for the backward pass, which computes them again. It writes them, and their
gradients, for some rows at a time: the gradients of the weights are then plain matrix products.
Sums have a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from est_ocp.nn.triton.support import block_size
from est_ocp.nn.triton.tanh import tanh, tanh_kind

#: Rows whose hidden activations exist at the same time in the backward pass: in bfloat16 and with
#: 1,024 hidden channels, 256 MiB for these and their gradients.
SLAB_ROWS = 65536

#: From here on smaller programs, of which several share a multiprocessor, are the faster ones.
MANY_ROWS = 65536


class ExpertsLaunch(NamedTuple):
    """How a kernel is launched.

    Attributes
    ----------
    rows, hidden : int
        Rows of a program, and hidden channels of one step of its loop; powers of two from 16.
    warps, stages : int
        Triton's ``num_warps`` and ``num_stages``.
    tanh : int
        See :mod:`est_ocp.nn.triton.tanh`.
    """

    rows: int
    hidden: int
    warps: int
    stages: int
    tanh: int


@triton.jit
def _load_tile(ptr, i, j, stride_i, stride_j, mask_i, mask_j, EVEN: tl.constexpr):
    """Matrix elements ``i`` times ``j``; zero where masked, unless the sizes are even."""
    where = ptr + i[:, None] * stride_i + j[None, :] * stride_j
    if EVEN:
        return tl.load(where)
    return tl.load(where, mask=mask_i[:, None] & mask_j[None, :], other=0.0)


@triton.jit
def _forward_kernel(
    x_ptr, gate_ptr, weight_in_ptr, bias_in_ptr, weight_out_ptr, out_ptr,
    num_rows, num_points, channels, hidden_channels, num_experts,
    EVEN: tl.constexpr, TANH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program a block of rows: all hidden channels, one chunk after the other."""
    first = tl.program_id(0) * BLOCK_M
    start = first.to(tl.int64) * channels
    m = tl.arange(0, BLOCK_M)
    c = tl.arange(0, BLOCK_C)
    in_rows, in_channels = m < num_rows - first, c < channels
    rows = m[:, None] * channels + c[None, :]
    mask = in_rows[:, None] & in_channels[None, :]
    x = tl.load(x_ptr + start + rows, mask=mask, other=0.0)
    gates = gate_ptr + (first + m) // num_points * num_experts
    all_hidden = num_experts * hidden_channels
    chunks = tl.cdiv(hidden_channels, BLOCK_H)
    total = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    for chunk in range(0, num_experts * chunks):
        expert = chunk // chunks
        h = (chunk % chunks) * BLOCK_H + tl.arange(0, BLOCK_H)
        in_hidden = h < hidden_channels
        h += expert * hidden_channels
        weight_in = _load_tile(weight_in_ptr, c, h, 1, channels, in_channels, in_hidden, EVEN)
        bias = tl.load(bias_in_ptr + h, mask=in_hidden, other=0.0).to(tl.float32)
        gate = tl.load(gates + expert, mask=in_rows, other=0.0).to(tl.float32)
        half = tl.dot(x, weight_in) * 0.5 + (bias * 0.5)[None, :]
        activated = (half + half * tanh(half, TANH)) * gate[:, None]
        weight_out = _load_tile(weight_out_ptr, h, c, 1, all_hidden, in_hidden, in_channels, EVEN)
        total = tl.dot(activated.to(x.dtype), weight_out, total)
    tl.store(out_ptr + start + rows, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    grad_ptr, x_ptr, gate_ptr, weight_in_ptr, bias_in_ptr, columns_in_ptr, columns_out_ptr,
    grad_x_ptr, grad_gate_ptr, grad_bias_ptr, grad_hidden_ptr, activated_ptr,
    first_row, end_row, num_rows, num_points, channels, hidden_channels, num_experts,
    SEPARATE: tl.constexpr, EVEN: tl.constexpr, TANH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient of the input, and what the other gradients need, for the rows of one slab.

    ``columns_in`` [C, E * H] and ``columns_out`` [E * H, C] are the transposed weights: in TF32,
    tensor cores want both operands contiguous along the summed index.
    """
    in_slab = tl.program_id(0) * BLOCK_M
    first = first_row + in_slab
    start = first.to(tl.int64) * channels
    m = tl.arange(0, BLOCK_M)
    c = tl.arange(0, BLOCK_C)
    in_rows, in_channels = m < end_row - first, c < channels
    rows = m[:, None] * channels + c[None, :]
    mask = in_rows[:, None] & in_channels[None, :]
    x = tl.load(x_ptr + start + rows, mask=mask, other=0.0)
    grad = tl.load(grad_ptr + start + rows, mask=mask, other=0.0)
    gates = gate_ptr + (first + m) // num_points * num_experts
    all_hidden = num_experts * hidden_channels
    chunks = tl.cdiv(hidden_channels, BLOCK_H)
    grad_gate_ptr += first
    grad_bias_ptr += (first // BLOCK_M).to(tl.int64) * all_hidden
    grad_hidden_ptr += in_slab.to(tl.int64) * all_hidden
    activated_ptr += in_slab.to(tl.int64) * all_hidden
    total = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    for chunk in range(0, num_experts * chunks):
        expert = chunk // chunks
        h = (chunk % chunks) * BLOCK_H + tl.arange(0, BLOCK_H)
        in_hidden = h < hidden_channels
        h += expert * hidden_channels
        weight_in = _load_tile(weight_in_ptr, c, h, 1, channels, in_channels, in_hidden, EVEN)
        bias = tl.load(bias_in_ptr + h, mask=in_hidden, other=0.0).to(tl.float32)
        gate = tl.load(gates + expert, mask=in_rows, other=0.0).to(tl.float32)
        half = tl.dot(x, weight_in) * 0.5 + (bias * 0.5)[None, :]
        columns_out = _load_tile(columns_out_ptr, c, h, 1, channels, in_channels, in_hidden, EVEN)
        grad_weighted = tl.dot(grad, columns_out)
        t = tanh(half, TANH)
        silu = half + half * t
        tl.store(
            grad_gate_ptr + m,
            tl.sum(grad_weighted * silu, axis=1),
            mask=in_rows,
        )
        # The derivative of SiLU is half of 1 + t + half (1 - t^2).
        grad_z = grad_weighted * (gate * 0.5)[:, None]
        grad_z += grad_z * (t + half * (1.0 - t * t))
        tl.store(grad_bias_ptr + h, tl.sum(grad_z, axis=0), mask=in_hidden)
        where = m[:, None] * all_hidden + h[None, :]
        written = in_rows[:, None] & in_hidden[None, :]
        grad_z = grad_z.to(x.dtype)
        tl.store(grad_hidden_ptr + where, grad_z, mask=written)
        tl.store(activated_ptr + where, (silu * gate[:, None]).to(x.dtype), mask=written)
        if SEPARATE:
            rows_in = _load_tile(columns_in_ptr, h, c, 1, all_hidden, in_hidden, in_channels, EVEN)
        else:
            rows_in = tl.trans(weight_in)
        total = tl.dot(grad_z, rows_in, total)
        grad_gate_ptr += num_rows
    tl.store(grad_x_ptr + start + rows, total.to(grad_x_ptr.dtype.element_ty), mask=mask)


def launch_settings(x: Tensor, backward: bool) -> ExpertsLaunch:
    """Settings that fit the shared memory of A100 and H100 GPUs, for features ``x`` [N, S, C]."""
    wide = block_size(x.shape[-1]) > 128
    if x.dtype == torch.float32:
        rows, hidden, warps, stages = (64, 32, 8, 1) if backward else (64, 32, 4, 2)
        if wide:
            rows, hidden, warps, stages = 32, 16, 4, 1
    else:
        rows, hidden, warps, stages = 128, 32 if backward else 64, 8, 2
        if not backward and x.shape[0] * x.shape[1] >= MANY_ROWS:
            rows, warps = 64, 4
        if wide:
            rows, hidden, warps, stages = 64, 32, 4, 1
    return ExpertsLaunch(rows, hidden, warps, stages, tanh_kind())


def _kernel_arguments(
    x: Tensor, hidden_channels: int, launch: ExpertsLaunch
) -> dict[str, int | bool]:
    channels = x.shape[-1]
    width = block_size(channels)
    return {
        "EVEN": channels == width and hidden_channels % launch.hidden == 0,
        "TANH": launch.tanh,
        "BLOCK_M": launch.rows,
        "BLOCK_H": launch.hidden,
        "BLOCK_C": width,
        "num_warps": launch.warps,
        "num_stages": launch.stages,
    }


def forward(
    x: Tensor,
    gate: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    launch: ExpertsLaunch,
) -> Tensor:
    """Result of :func:`spherical_experts` with given launch settings."""
    x, gate, bias_in = x.contiguous(), gate.contiguous(), bias_in.contiguous()
    weight_in, weight_out = (w.to(x.dtype).contiguous() for w in (weight_in, weight_out))
    num_experts = gate.shape[1]
    num_rows, hidden_channels = x.shape[0] * x.shape[1], len(weight_in) // num_experts
    out = torch.empty_like(x)
    if num_rows:
        _forward_kernel[(triton.cdiv(num_rows, launch.rows),)](
            x, gate, weight_in, bias_in, weight_out, out,
            num_rows, x.shape[1], x.shape[2], hidden_channels, num_experts,
            **_kernel_arguments(x, hidden_channels, launch),
        )  # fmt: skip
    return out


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a^T b``, summed in float32, to ``total``, which is float32."""
    if a.dtype == torch.float32:
        total.addmm_(a.t(), b)
    elif a.is_cuda:
        total.add_(torch.mm(a.t(), b, out_dtype=torch.float32))
    else:
        total.addmm_(a.t().float(), b.float())


def backward(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    launch: ExpertsLaunch,
    slab_rows: int = SLAB_ROWS,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`spherical_experts` with given launch settings.

    Parameters
    ----------
    grad : Tensor [N, S, C]
        Gradient of the result.
    x, gate, weight_in, bias_in, weight_out
        As for the forward pass.
    launch : ExpertsLaunch
    slab_rows : int
        Rows whose hidden activations are written at a time.

    Returns
    -------
    tuple of Tensor
        Gradients of the five inputs; those of `x` in its type, the others in float32.
    """
    x, grad, gate = x.contiguous(), grad.to(x.dtype).contiguous(), gate.contiguous()
    bias_in, weight_in = bias_in.contiguous(), weight_in.to(x.dtype).contiguous()
    columns_out = weight_out.to(x.dtype).t().contiguous()
    separate = x.dtype == torch.float32
    columns_in = weight_in.t().contiguous() if separate else weight_in
    num_nodes, num_points, channels = x.shape
    all_hidden, num_experts = len(weight_in), gate.shape[1]
    num_rows, hidden_channels = num_nodes * num_points, all_hidden // num_experts
    blocks = triton.cdiv(num_rows, launch.rows)
    slab_rows = min(triton.cdiv(slab_rows, launch.rows), blocks) * launch.rows
    chunks = triton.cdiv(hidden_channels, launch.hidden)

    single = {"dtype": torch.float32, "device": x.device}
    grad_x = torch.empty_like(x)
    grad_gate = torch.empty(num_experts, chunks, num_nodes, num_points, **single)
    grad_bias = torch.empty(blocks, all_hidden, **single)
    grad_in = torch.zeros(all_hidden, channels, **single)
    grad_out = torch.zeros(channels, all_hidden, **single)
    grad_hidden = x.new_empty(min(slab_rows, num_rows), all_hidden)
    activated = torch.empty_like(grad_hidden)
    rows, grad_rows = x.view(num_rows, channels), grad.view(num_rows, channels)
    for first in range(0, num_rows, max(slab_rows, 1)):
        end = min(first + slab_rows, num_rows)
        _backward_kernel[(triton.cdiv(end - first, launch.rows),)](
            grad, x, gate, weight_in, bias_in, columns_in, columns_out,
            grad_x, grad_gate, grad_bias, grad_hidden, activated,
            first, end, num_rows, num_points, channels, hidden_channels, num_experts,
            SEPARATE=separate, **_kernel_arguments(x, hidden_channels, launch),
        )  # fmt: skip
        _add_product(grad_in, grad_hidden[: end - first], rows[first:end])
        _add_product(grad_out, grad_rows[first:end], activated[: end - first])
    return grad_x, grad_gate.sum(dim=(1, 3)).t(), grad_in, grad_bias.sum(dim=0), grad_out


@torch.library.custom_op("est_ocp::spherical_experts", mutates_args=())
def spherical_experts(
    x: Tensor, gate: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor
) -> Tensor:
    """Gate-weighted sum of feed-forward networks with SiLU, without their output bias.

    Parameters
    ----------
    x : Tensor [N, S, C]
        bfloat16, float16 or float32, the type of all products; these sum in float32.
    gate : Tensor [N, E]
    weight_in : Tensor [E * H, C]
    bias_in : Tensor [E * H]
    weight_out : Tensor [C, E * H]
        Any floating-point types.

    Returns
    -------
    Tensor [N, S, C]
        In the type of `x`.
    """
    return forward(x, gate, weight_in, bias_in, weight_out, launch_settings(x, backward=False))


@torch.library.custom_op("est_ocp::spherical_experts_backward", mutates_args=())
def spherical_experts_backward(
    grad: Tensor, x: Tensor, gate: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the five inputs of :func:`spherical_experts`, each in its input's type."""
    inputs = (x, gate, weight_in, bias_in, weight_out)
    grads = backward(grad, *inputs, launch_settings(x, backward=True))
    return tuple(g.to(i.dtype).contiguous() for g, i in zip(grads, inputs, strict=True))


@spherical_experts.register_fake
def _(x, gate, weight_in, bias_in, weight_out):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@spherical_experts_backward.register_fake
def _(grad, x, gate, weight_in, bias_in, weight_out):
    return tuple(
        torch.empty_like(i, memory_format=torch.contiguous_format)
        for i in (x, gate, weight_in, bias_in, weight_out)
    )


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):
    return spherical_experts_backward(grad, *ctx.saved_tensors)


spherical_experts.register_autograd(_differentiate, setup_context=_keep)
