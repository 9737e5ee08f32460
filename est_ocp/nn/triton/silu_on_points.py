"""SiLU of a function on the sphere, from coefficients to coefficients, fused.

The values at the points, several times larger than the coefficients, stay in registers; the
backward pass computes them again. Where ``h`` is half a value, ``silu = h + h tanh(h)``: half
the matrix to the points is what the kernels multiply by, and one instruction gives ``tanh``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from est_ocp.nn.triton.support import SMALLEST_BLOCK, block_size, matrix_bytes
from est_ocp.nn.triton.tanh import tanh, tanh_kind

#: Programs that fill the largest GPUs several times over.
ENOUGH_PROGRAMS = 2048

#: Bytes of both matrices beside which float32 gradients have to be worked on in small blocks, to
#: stay within 99 KiB of shared memory.
LARGE_MATRICES = 32 * 1024


@triton.jit
def _points(
    matrix_ptr, row_stride, column_stride, num_rows, num_points, first_row, START: tl.constexpr,
    ROWS: tl.constexpr, POINTS: tl.constexpr, factor: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Columns of a matrix [rows, points]: those of the points from START on.

    Row r of the block is row ``r - first_row`` of the matrix, or zero.
    """
    rows = tl.arange(0, ROWS)[:, None] - first_row
    points = START + tl.arange(0, POINTS)[None, :]
    matrix = tl.load(
        matrix_ptr + rows * row_stride + points * column_stride,
        mask=(rows >= 0) & (rows < num_rows) & (points < num_points),
        other=0.0,
    )
    return (matrix * factor).to(dtype)


@triton.jit
def _activate(out, x, to_points, from_points, TANH: tl.constexpr):
    h = tl.dot(x, to_points)
    h += h * tanh(h, TANH)
    return tl.dot(h.to(x.dtype), tl.trans(from_points), out)


@triton.jit
def _differentiate(out, x, grad, to_points, from_points, TANH: tl.constexpr):
    h = tl.dot(x, to_points)
    t = tanh(h, TANH)
    grad = tl.dot(grad, from_points)
    # Twice the derivative of SiLU is 1 + t + h (1 - t^2); the matrix is halved.
    values = grad + grad * (t + h * (1.0 - t * t))
    return tl.dot(values.to(x.dtype), tl.trans(to_points), out)


@triton.jit
def _forward_kernel(
    scalars_ptr, x_ptr, to_ptr, from_ptr, out_ptr, num_edges, scalars_stride, channels, num_in,
    num_out, num_points, tiles, EDGES: tl.constexpr, CHANNELS: tl.constexpr, IN: tl.constexpr,
    OUT: tl.constexpr, P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr,
    TANH: tl.constexpr,
):  # fmt: skip
    """``out = silu(x T) F`` on rows of (edge, channel), with ``silu(scalars)`` as first column.

    The points are taken in up to four blocks of P0, P1, ... points: a power of two each.
    """
    kind: tl.constexpr = x_ptr.dtype.element_ty
    to0 = _points(to_ptr, 1, num_in, num_in, num_points, 0, 0, IN, P0, 0.5, kind)
    from0 = _points(from_ptr, num_points, 1, num_out - 1, num_points, 1, 0, OUT, P0, 1.0, kind)
    if P1 > 0:
        to1 = _points(to_ptr, 1, num_in, num_in, num_points, 0, P0, IN, P1, 0.5, kind)
        from1 = _points(from_ptr, num_points, 1, num_out - 1, num_points, 1, P0, OUT, P1, 1.0, kind)
    if P2 > 0:
        to2 = _points(to_ptr, 1, num_in, num_in, num_points, 0, P0 + P1, IN, P2, 0.5, kind)
        from2 = _points(
            from_ptr, num_points, 1, num_out - 1, num_points, 1, P0 + P1, OUT, P2, 1.0, kind
        )
    if P3 > 0:
        to3 = _points(to_ptr, 1, num_in, num_in, num_points, 0, P0 + P1 + P2, IN, P3, 0.5, kind)
        from3 = _points(
            from_ptr, num_points, 1, num_out - 1, num_points, 1, P0 + P1 + P2, OUT, P3, 1.0, kind
        )
    m = tl.arange(0, EDGES * CHANNELS)
    edge = m // CHANNELS
    c = m % CHANNELS + tl.program_id(1) * CHANNELS
    rows_in = tl.arange(0, IN)[None, :]
    rows_out = tl.arange(0, OUT)[None, :]
    for tile in range(tiles):
        first = (tl.program_id(0) * tiles + tile) * EDGES
        start = first.to(tl.int64)
        mask = (first + edge < num_edges) & (c < channels)
        x = tl.load(
            x_ptr + start * num_in * channels
            + ((edge * num_in * channels + c)[:, None] + rows_in * channels),
            mask=mask[:, None] & (rows_in < num_in),
            other=0.0,
        )  # fmt: skip
        scalars = tl.load(
            scalars_ptr + start * scalars_stride + (edge * scalars_stride + c), mask=mask, other=0.0
        ).to(tl.float32)
        scalars = scalars * tl.sigmoid(scalars)
        out = tl.zeros((EDGES * CHANNELS, OUT), tl.float32)
        out = _activate(out, x, to0, from0, TANH)
        if P1 > 0:
            out = _activate(out, x, to1, from1, TANH)
        if P2 > 0:
            out = _activate(out, x, to2, from2, TANH)
        if P3 > 0:
            out = _activate(out, x, to3, from3, TANH)
        out = tl.where(rows_out == 0, scalars[:, None], out)
        tl.store(
            out_ptr + start * num_out * channels
            + ((edge * num_out * channels + c)[:, None] + rows_out * channels),
            out.to(kind),
            mask=mask[:, None] & (rows_out < num_out),
        )  # fmt: skip


@triton.jit
def _backward_kernel(
    grad_ptr, scalars_ptr, x_ptr, to_ptr, from_ptr, grad_scalars_ptr, out_ptr, num_edges,
    scalars_stride, channels, num_in, num_out, num_points, tiles, EDGES: tl.constexpr,
    CHANNELS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, P0: tl.constexpr,
    P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    """Gradients: ``(grad F^T * silu'(x T)) T^T``, and the first column's for the scalars."""
    kind: tl.constexpr = x_ptr.dtype.element_ty
    to0 = _points(to_ptr, 1, num_in, num_in, num_points, 0, 0, IN, P0, 0.5, kind)
    from0 = _points(from_ptr, num_points, 1, num_out - 1, num_points, 1, 0, OUT, P0, 1.0, kind)
    if P1 > 0:
        to1 = _points(to_ptr, 1, num_in, num_in, num_points, 0, P0, IN, P1, 0.5, kind)
        from1 = _points(from_ptr, num_points, 1, num_out - 1, num_points, 1, P0, OUT, P1, 1.0, kind)
    if P2 > 0:
        to2 = _points(to_ptr, 1, num_in, num_in, num_points, 0, P0 + P1, IN, P2, 0.5, kind)
        from2 = _points(
            from_ptr, num_points, 1, num_out - 1, num_points, 1, P0 + P1, OUT, P2, 1.0, kind
        )
    if P3 > 0:
        to3 = _points(to_ptr, 1, num_in, num_in, num_points, 0, P0 + P1 + P2, IN, P3, 0.5, kind)
        from3 = _points(
            from_ptr, num_points, 1, num_out - 1, num_points, 1, P0 + P1 + P2, OUT, P3, 1.0, kind
        )
    m = tl.arange(0, EDGES * CHANNELS)
    edge = m // CHANNELS
    c = m % CHANNELS + tl.program_id(1) * CHANNELS
    rows_in = tl.arange(0, IN)[None, :]
    rows_out = tl.arange(0, OUT)[None, :]
    for tile in range(tiles):
        first = (tl.program_id(0) * tiles + tile) * EDGES
        start = first.to(tl.int64)
        mask = (first + edge < num_edges) & (c < channels)
        where_in = start * num_in * channels
        offsets_in = (edge * num_in * channels + c)[:, None] + rows_in * channels
        mask_in = mask[:, None] & (rows_in < num_in)
        x = tl.load(x_ptr + where_in + offsets_in, mask=mask_in, other=0.0)
        where_out = grad_ptr + start * num_out * channels
        offsets_out = edge * num_out * channels + c
        grad = tl.load(
            where_out + (offsets_out[:, None] + rows_out * channels),
            mask=mask[:, None] & (rows_out > 0) & (rows_out < num_out),
            other=0.0,
        )
        scalars = tl.load(
            scalars_ptr + start * scalars_stride + (edge * scalars_stride + c), mask=mask, other=0.0
        ).to(tl.float32)
        sigmoid = tl.sigmoid(scalars)
        slope = sigmoid * (1.0 + scalars * (1.0 - sigmoid))
        grad_scalars = tl.load(where_out + offsets_out, mask=mask, other=0.0).to(tl.float32) * slope
        tl.store(
            grad_scalars_ptr + start * channels + (edge * channels + c),
            grad_scalars.to(grad_scalars_ptr.dtype.element_ty),
            mask=mask,
        )
        out = tl.zeros((EDGES * CHANNELS, IN), tl.float32)
        out = _differentiate(out, x, grad, to0, from0, TANH)
        if P1 > 0:
            out = _differentiate(out, x, grad, to1, from1, TANH)
        if P2 > 0:
            out = _differentiate(out, x, grad, to2, from2, TANH)
        if P3 > 0:
            out = _differentiate(out, x, grad, to3, from3, TANH)
        tl.store(out_ptr + where_in + offsets_in, out.to(kind), mask=mask_in)


@dataclass(frozen=True)
class Settings:
    """How the kernels are launched.

    Parameters
    ----------
    rows : int
        Rows, of (edge, channel), that a program works on at once; a power of two, at least 16.
    tiles : int
        Times that a program does so, at most, with the matrices kept; fewer where that would
        leave a GPU without work.
    points : int
        Points at once, at most; a power of two, at least 16.
    num_warps, num_stages : int
        Triton's options.
    tanh : int
        See :mod:`est_ocp.nn.triton.tanh`.
    """

    rows: int
    tiles: int
    points: int
    num_warps: int
    num_stages: int
    tanh: int


def default_settings(dtype: torch.dtype, backward: bool, matrices: int = 0) -> Settings:
    """Settings for features of a type, where the caller gives none.

    `matrices` are the bytes of both, see :func:`est_ocp.nn.triton.support.matrix_bytes`.
    """
    if dtype == torch.float32 and backward and matrices > LARGE_MATRICES:
        return Settings(32, 16, 64, num_warps=2, num_stages=1, tanh=tanh_kind())
    half_forward = dtype != torch.float32 and not backward
    points = 32 if dtype != torch.float32 and backward else 64
    return Settings(
        64, 16, points, num_warps=4, num_stages=3 if half_forward else 1, tanh=tanh_kind()
    )


def point_blocks(num_points: int, largest: int) -> tuple[int, int, int, int]:
    """Split points into four powers of two, most of them 0, with little padding.

    Blocks are at least `SMALLEST_BLOCK` or 0, and at most `largest` unless four of them are too
    few for all points.
    """
    while 4 * largest < num_points:
        largest *= 2
    blocks, left = [], num_points
    for _ in range(3):
        whole = -(-left // SMALLEST_BLOCK) * SMALLEST_BLOCK
        blocks.append(min(largest, 1 << (whole.bit_length() - 1)) if left > 0 else 0)
        left -= blocks[-1]
    first, second, third = blocks
    return first, second, third, block_size(left) if left > 0 else 0


def _launch(
    x: Tensor, num_out: int, num_points: int, settings: Settings
) -> tuple[tuple[int, int], int, dict[str, int]]:
    """Grid, tiles of a program, blocks and options."""
    channels = min(settings.rows, block_size(x.shape[2]))
    edges = settings.rows // channels
    num_tiles = triton.cdiv(x.shape[0], edges)
    tiles = max(1, min(settings.tiles, num_tiles // ENOUGH_PROGRAMS))
    grid = (triton.cdiv(num_tiles, tiles), triton.cdiv(x.shape[2], channels))
    blocks = dict(
        zip(("P0", "P1", "P2", "P3"), point_blocks(num_points, settings.points), strict=True)
    )
    return (
        grid,
        tiles,
        blocks
        | {
            "EDGES": edges,
            "CHANNELS": channels,
            "IN": block_size(x.shape[1]),
            "OUT": block_size(num_out),
            "TANH": settings.tanh,
            "num_warps": settings.num_warps,
            "num_stages": settings.num_stages,
        },
    )


def forward(
    scalars: Tensor, x: Tensor, to_points: Tensor, from_points: Tensor, settings: Settings
) -> Tensor:
    """:func:`silu_on_points` with given settings, without derivatives."""
    x, scalars = x.contiguous(), _unit_stride(scalars)
    to_points, from_points = to_points.contiguous(), from_points.contiguous()
    num_out, num_points = from_points.shape[0] + 1, from_points.shape[1]
    out = x.new_empty(x.shape[0], num_out, x.shape[2])
    if out.numel():
        grid, tiles, options = _launch(x, num_out, num_points, settings)
        _forward_kernel[grid](
            scalars, x, to_points, from_points, out, x.shape[0], scalars.stride(0), x.shape[2],
            x.shape[1], num_out, num_points, tiles, **options,
        )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    scalars: Tensor,
    x: Tensor,
    to_points: Tensor,
    from_points: Tensor,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """:func:`silu_on_points_backward` with given settings."""
    x, scalars, grad = x.contiguous(), _unit_stride(scalars), grad.to(x.dtype).contiguous()
    to_points, from_points = to_points.contiguous(), from_points.contiguous()
    num_out, num_points = from_points.shape[0] + 1, from_points.shape[1]
    grad_scalars = scalars.new_empty(scalars.shape)
    out = torch.empty_like(x)
    if out.numel():
        grid, tiles, options = _launch(x, num_out, num_points, settings)
        _backward_kernel[grid](
            grad, scalars, x, to_points, from_points, grad_scalars, out, x.shape[0],
            scalars.stride(0), x.shape[2], x.shape[1], num_out, num_points, tiles, **options,
        )  # fmt: skip
    return grad_scalars, out


def _settings(x: Tensor, from_points: Tensor, backward: bool) -> Settings:
    matrices = matrix_bytes(x.shape[1], from_points.shape[0] + 1, from_points.shape[1])
    return default_settings(x.dtype, backward, matrices)


def _unit_stride(scalars: Tensor) -> Tensor:
    """Rows may lie apart, as those of a slice of the channels do; channels may not."""
    return scalars if scalars.stride(-1) == 1 else scalars.contiguous()


@torch.library.custom_op("est_ocp::silu_on_points", mutates_args=())
def silu_on_points(scalars: Tensor, x: Tensor, to_points: Tensor, from_points: Tensor) -> Tensor:
    """Evaluate on points, apply SiLU, project back; scalars apart.

    Parameters
    ----------
    scalars : Tensor [E, C]
        SiLU of them is the first row of the result.
    x : Tensor [E, R, C]
    to_points : Tensor [S, R]
    from_points : Tensor [R_out - 1, S]
        Rounded to the type of `x` in the kernel; they get no gradients.

    Returns
    -------
    Tensor [E, R_out, C]
        In the type of `x`.
    """
    settings = _settings(x, from_points, backward=False)
    return forward(scalars, x, to_points, from_points, settings)


@torch.library.custom_op("est_ocp::silu_on_points_backward", mutates_args=())
def silu_on_points_backward(
    grad: Tensor, scalars: Tensor, x: Tensor, to_points: Tensor, from_points: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`silu_on_points` from that of its result [E, R_out, C].

    Returns
    -------
    grad_scalars : Tensor [E, C]
    grad_x : Tensor [E, R, C]
    """
    settings = _settings(x, from_points, backward=True)
    return backward(grad, scalars, x, to_points, from_points, settings)


@silu_on_points.register_fake
def _(scalars, x, to_points, from_points):
    return x.new_empty(x.shape[0], from_points.shape[0] + 1, x.shape[2])


@silu_on_points_backward.register_fake
def _(grad, scalars, x, to_points, from_points):
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return scalars.new_empty(scalars.shape), grad_x


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return *silu_on_points_backward(grad, *ctx.saved_tensors), None, None


silu_on_points.register_autograd(_backward, setup_context=_keep)
