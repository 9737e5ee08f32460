"""Rotate node features into the frames of edges, and messages back with their sum, fused.

The two operations are each other's adjoint, so each is the other's derivative. Gathered copies of
the node features and rotated messages are never written to memory, and sums over the edges of a
node need no atomic additions: results do not depend on the order of execution.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from est_ocp.nn.triton.support import block_size


@triton.jit
def _to_frames_kernel(
    x_ptr, wigner_ptr, index_ptr, out_ptr,
    num_edges, num_rows, num_coefficients, channels,
    ENDS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program an edge, end and block of channels: ``out[e, :, end] = W[e] x[index[e]]``."""
    edge = tl.program_id(0).to(tl.int64)
    end = tl.program_id(1)
    rows = tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_I)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    node = tl.load(index_ptr + end * num_edges + edge)
    wigner = tl.load(
        wigner_ptr
        + edge * num_rows * num_coefficients
        + rows[:, None] * num_coefficients
        + columns[None, :],
        mask=(rows[:, None] < num_rows) & (columns[None, :] < num_coefficients),
        other=0.0,
    )
    x = tl.load(
        x_ptr + node * num_coefficients * channels + columns[:, None] * channels + c[None, :],
        mask=(columns[:, None] < num_coefficients) & (c[None, :] < channels),
        other=0.0,
    )
    y = tl.dot(wigner, x)
    tl.store(
        out_ptr + (edge * num_rows + rows[:, None]) * (ENDS * channels) + end * channels
        + c[None, :],
        y.to(out_ptr.dtype.element_ty),
        mask=(rows[:, None] < num_rows) & (c[None, :] < channels),
    )  # fmt: skip


@triton.jit
def _from_frames_kernel(
    messages_ptr, wigner_ptr, permutation_ptr, offsets_ptr, out_ptr,
    num_edges, num_nodes, num_rows, num_coefficients, channels,
    ENDS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program a node and block of channels: sum of ``W[e]^T messages[e]`` over its edges."""
    node = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_I)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_I, BLOCK_C), dtype=tl.float32)
    for end in tl.static_range(ENDS):
        first = tl.load(offsets_ptr + end * (num_nodes + 1) + node)
        last = tl.load(offsets_ptr + end * (num_nodes + 1) + node + 1)
        for k in range(first, last):
            edge = tl.load(permutation_ptr + end * num_edges + k)
            transposed = tl.load(
                wigner_ptr
                + edge * num_rows * num_coefficients
                + rows[None, :] * num_coefficients
                + columns[:, None],
                mask=(rows[None, :] < num_rows) & (columns[:, None] < num_coefficients),
                other=0.0,
            )
            message = tl.load(
                messages_ptr + (edge * num_rows + rows[:, None]) * (ENDS * channels)
                + end * channels + c[None, :],
                mask=(rows[:, None] < num_rows) & (c[None, :] < channels),
                other=0.0,
            )  # fmt: skip
            total = tl.dot(transposed, message, total)
    tl.store(
        out_ptr + node * num_coefficients * channels + columns[:, None] * channels + c[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=(columns[:, None] < num_coefficients) & (c[None, :] < channels),
    )


def _blocks(wigner: Tensor, channels: int) -> dict[str, int]:
    return {
        "BLOCK_R": block_size(wigner.shape[1]),
        "BLOCK_I": block_size(wigner.shape[2]),
        "BLOCK_C": min(128, block_size(channels)),
    }


@torch.library.custom_op("est_ocp::to_frames", mutates_args=())
def to_frames(
    x: Tensor, wigner: Tensor, index: Tensor, permutation: Tensor, offsets: Tensor
) -> Tensor:
    """Rotate the features of the ends of every edge into its frame.

    Parameters
    ----------
    x : Tensor [N, I, C]
    wigner : Tensor [E, R, I]
        In the type of `x`; it gets no gradient.
    index : Tensor [J, E], int64
        Nodes at the J ends of every edge.
    permutation : Tensor [J, E], int64
        Edges sorted by their node, for each end.
    offsets : Tensor [J, N + 1], int64
        Where the edges of each node begin in the permutation.

    Returns
    -------
    Tensor [E, R, J * C]
        One end after the other along the channels.
    """
    x, wigner, index = x.contiguous(), wigner.contiguous(), index.contiguous()
    ends, num_edges = index.shape
    channels = x.shape[2]
    out = x.new_empty(num_edges, wigner.shape[1], ends * channels)
    if num_edges:
        blocks = _blocks(wigner, channels)
        grid = (num_edges, ends, triton.cdiv(channels, blocks["BLOCK_C"]))
        _to_frames_kernel[grid](
            x, wigner, index, out, num_edges, wigner.shape[1], wigner.shape[2], channels,
            ENDS=ends, num_warps=4, **blocks,
        )  # fmt: skip
    return out


@torch.library.custom_op("est_ocp::from_frames", mutates_args=())
def from_frames(
    messages: Tensor, wigner: Tensor, index: Tensor, permutation: Tensor, offsets: Tensor
) -> Tensor:
    """Rotate messages out of the frames of their edges and add them up at the edges' ends.

    Parameters
    ----------
    messages : Tensor [E, R, J * C]
    wigner, index, permutation, offsets
        As for :func:`to_frames`.

    Returns
    -------
    Tensor [N, I, C], float32
        Zero for nodes without edges.
    """
    messages, wigner = messages.contiguous(), wigner.contiguous()
    permutation, offsets = permutation.contiguous(), offsets.contiguous()
    ends, num_edges = index.shape
    num_nodes, channels = offsets.shape[1] - 1, messages.shape[2] // ends
    out = messages.new_empty(num_nodes, wigner.shape[2], channels, dtype=torch.float32)
    blocks = _blocks(wigner, channels)
    grid = (num_nodes, triton.cdiv(channels, blocks["BLOCK_C"]))
    _from_frames_kernel[grid](
        messages, wigner, permutation, offsets, out,
        num_edges, num_nodes, wigner.shape[1], wigner.shape[2], channels,
        ENDS=ends, num_warps=4, **blocks,
    )  # fmt: skip
    return out


@to_frames.register_fake
def _(x, wigner, index, permutation, offsets):
    return x.new_empty(index.shape[1], wigner.shape[1], index.shape[0] * x.shape[2])


@from_frames.register_fake
def _(messages, wigner, index, permutation, offsets):
    channels = messages.shape[2] // index.shape[0]
    return messages.new_empty(offsets.shape[1] - 1, wigner.shape[2], channels, dtype=torch.float32)


def _keep(ctx, inputs, output):
    first, *rest = inputs
    ctx.save_for_backward(*rest)
    ctx.dtype = first.dtype


def _to_frames_backward(ctx, grad):
    out = from_frames(grad, *ctx.saved_tensors)
    return out.to(ctx.dtype), None, None, None, None


def _from_frames_backward(ctx, grad):
    return to_frames(grad.to(ctx.dtype), *ctx.saved_tensors), None, None, None, None


to_frames.register_autograd(_to_frames_backward, setup_context=_keep)
from_frames.register_autograd(_from_frames_backward, setup_context=_keep)
