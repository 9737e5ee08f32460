"""Rotate weighted messages out of the frames of their edges and add them up, fused.

The weighted messages are never written; one kernel gives the gradients of messages and weights and
reads the messages once. Sums over the edges of a node have a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from est_ocp.nn.triton.launch import Launch, Launches, rotation_layout, with_contiguous_rows
from est_ocp.nn.triton.support import block_size

#: Settings of the two kernels.
FORWARD = Launches(half=Launch(), single=Launch(num_warps=2))
BACKWARD = Launch(num_stages=1)


@triton.jit
def _forward_kernel(
    messages_ptr, wigner_ptr, weights_ptr, permutation_ptr, offsets_ptr, out_ptr,
    EDGE_STRIDE: tl.constexpr, ROW_STRIDE: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, COEFFICIENTS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program a node and block of channels: sum of ``weights[e] * W[e]^T messages[e]``."""
    CHANNELS: tl.constexpr = HEADS * WIDTH
    CHANNEL_BLOCKS: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    node = (program // CHANNEL_BLOCKS).to(tl.int64)
    c = program % CHANNEL_BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
    rows = tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_I)
    total = tl.zeros((BLOCK_I, BLOCK_C), dtype=tl.float32)
    for k in range(tl.load(offsets_ptr + node), tl.load(offsets_ptr + node + 1)):
        edge = tl.load(permutation_ptr + k)
        wigner = tl.load(
            wigner_ptr + edge * EDGE_STRIDE + rows[:, None] * ROW_STRIDE + columns[None, :],
            mask=(rows[:, None] < ROWS) & (columns[None, :] < COLUMNS),
            other=0.0,
        )
        message = tl.load(
            messages_ptr + edge * ROWS * CHANNELS + rows[:, None] * CHANNELS + c[None, :],
            mask=(rows[:, None] < ROWS) & (c[None, :] < CHANNELS),
            other=0.0,
        )
        weights = tl.load(weights_ptr + edge * HEADS + c // WIDTH, mask=c < CHANNELS, other=0.0)
        total += tl.dot(tl.trans(wigner), message) * weights.to(tl.float32)[None, :]
    tl.store(
        out_ptr + node * COEFFICIENTS * CHANNELS + columns[:, None] * CHANNELS + c[None, :],
        total,
        mask=(columns[:, None] < COEFFICIENTS) & (c[None, :] < CHANNELS),
    )


@triton.jit(do_not_specialize=["num_edges"])
def _backward_kernel(
    grad_ptr, messages_ptr, wigner_ptr, weights_ptr, target_ptr, grad_messages_ptr,
    grad_weights_ptr, num_edges,
    EDGE_STRIDE: tl.constexpr, ROW_STRIDE: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, COEFFICIENTS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    EDGES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One program a few edges, with all their channels.

    With ``rotated = W[e] grad[target]`` the gradient of the messages is ``weights[e] * rotated``;
    that of the weights is the sum of ``messages[e] * rotated`` over rows and a head's channels.
    """
    CHANNELS: tl.constexpr = HEADS * WIDTH
    begin = tl.program_id(0).to(tl.int64) * EDGES
    rows = tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_I)
    heads = tl.arange(0, BLOCK_H)
    for edge in range(begin, tl.minimum(begin + EDGES, num_edges)):
        node = tl.load(target_ptr + edge)
        wigner = tl.load(
            wigner_ptr + edge * EDGE_STRIDE + rows[:, None] * ROW_STRIDE + columns[None, :],
            mask=(rows[:, None] < ROWS) & (columns[None, :] < COLUMNS),
            other=0.0,
        )
        grad_weights = tl.zeros((BLOCK_H,), dtype=tl.float32)
        for block in tl.static_range((CHANNELS + BLOCK_C - 1) // BLOCK_C):
            c = block * BLOCK_C + tl.arange(0, BLOCK_C)
            grad = tl.load(
                grad_ptr + node * COEFFICIENTS * CHANNELS + columns[:, None] * CHANNELS
                + c[None, :],
                mask=(columns[:, None] < COEFFICIENTS) & (c[None, :] < CHANNELS),
                other=0.0,
            )  # fmt: skip
            where = edge * ROWS * CHANNELS + rows[:, None] * CHANNELS + c[None, :]
            mask = (rows[:, None] < ROWS) & (c[None, :] < CHANNELS)
            message = tl.load(messages_ptr + where, mask=mask, other=0.0)
            weights = tl.load(weights_ptr + edge * HEADS + c // WIDTH, mask=c < CHANNELS, other=0.0)
            rotated = tl.dot(wigner, grad)
            grad_message = rotated * weights.to(tl.float32)[None, :]
            tl.store(grad_messages_ptr + where, grad_message.to(message.dtype), mask=mask)
            products = tl.sum(rotated * message.to(tl.float32), axis=0)
            mine = heads[:, None] == (c // WIDTH)[None, :]
            grad_weights += tl.sum(tl.where(mine, products[None, :], 0.0), axis=1)
        tl.store(
            grad_weights_ptr + edge * HEADS + heads,
            grad_weights.to(grad_weights_ptr.dtype.element_ty),
            mask=heads < HEADS,
        )


def _sizes(messages: Tensor, wigner: Tensor, weights: Tensor) -> dict[str, int]:
    heads = weights.shape[1]
    return {
        **rotation_layout(wigner),
        "ROWS": wigner.shape[1],
        "COEFFICIENTS": wigner.shape[2],
        "HEADS": heads,
        "WIDTH": messages.shape[2] // heads,
        "BLOCK_R": block_size(wigner.shape[1]),
        "BLOCK_I": block_size(wigner.shape[2]),
    }


def launch_forward(
    messages: Tensor,
    wigner: Tensor,
    weights: Tensor,
    permutation: Tensor,
    offsets: Tensor,
    launch: Launch | None = None,
) -> Tensor:
    """Run the forward kernel, see :func:`weighted_from_frames`."""
    messages, weights = messages.contiguous(), weights.contiguous()
    wigner = with_contiguous_rows(wigner)
    permutation, offsets = permutation.contiguous(), offsets.contiguous()
    num_nodes, channels = offsets.shape[0] - 1, messages.shape[2]
    out = messages.new_empty(num_nodes, wigner.shape[2], channels, dtype=torch.float32)
    if num_nodes:
        launch = launch or FORWARD.of(messages)
        block = launch.channel_block(channels, messages.element_size())
        _forward_kernel[(num_nodes * triton.cdiv(channels, block),)](
            messages, wigner, weights, permutation, offsets, out,
            **_sizes(messages, wigner, weights), BLOCK_C=block,
            num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip
    return out


def launch_backward(
    grad: Tensor,
    messages: Tensor,
    wigner: Tensor,
    weights: Tensor,
    target: Tensor,
    launch: Launch = BACKWARD,
) -> tuple[Tensor, Tensor]:
    """Run the backward kernel, see :func:`weighted_from_frames_backward`."""
    messages, weights = messages.contiguous(), weights.contiguous()
    wigner = with_contiguous_rows(wigner)
    # Rounded once a node, and not by every edge that reads it.
    grad, target = grad.to(messages.dtype).contiguous(), target.contiguous()
    num_edges = messages.shape[0]
    grad_messages, grad_weights = torch.empty_like(messages), torch.empty_like(weights)
    if num_edges:
        _backward_kernel[(triton.cdiv(num_edges, launch.edges),)](
            grad, messages, wigner, weights, target, grad_messages, grad_weights, num_edges,
            **_sizes(messages, wigner, weights), EDGES=launch.edges,
            BLOCK_C=launch.channel_block(messages.shape[2], messages.element_size()),
            BLOCK_H=triton.next_power_of_2(weights.shape[1]),
            num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip
    return grad_messages, grad_weights


@torch.library.custom_op("est_ocp::weighted_from_frames", mutates_args=())
def weighted_from_frames(
    messages: Tensor,
    wigner: Tensor,
    weights: Tensor,
    target: Tensor,
    permutation: Tensor,
    offsets: Tensor,
) -> Tensor:
    """Rotate messages out of the frames of their edges and add them up, weighted, at the targets.

    Parameters
    ----------
    messages : Tensor [E, R, H * V]
        The V channels of each of H heads.
    wigner : Tensor [E, R, I]
        In the type of `messages`; it gets no gradient. Read as it lies, fastest from
        :func:`est_ocp.nn.edge_rotation.align_rotations`.
    weights : Tensor [E, H]
        Of any floating type.
    target : Tensor [E], int64
        Target node of every edge.
    permutation : Tensor [E], int64
        Edges sorted by their target.
    offsets : Tensor [N + 1], int64
        Where the edges of each target begin in the permutation.

    Returns
    -------
    Tensor [N, I, H * V], float32
        Zero for nodes without edges.
    """
    return launch_forward(messages, wigner, weights, permutation, offsets)


@torch.library.custom_op("est_ocp::weighted_from_frames_backward", mutates_args=())
def weighted_from_frames_backward(
    grad: Tensor, messages: Tensor, wigner: Tensor, weights: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the messages and weights of :func:`weighted_from_frames`."""
    return launch_backward(grad, messages, wigner, weights, target)


@weighted_from_frames.register_fake
def _(messages, wigner, weights, target, permutation, offsets):
    shape = (offsets.shape[0] - 1, wigner.shape[2], messages.shape[2])
    return messages.new_empty(shape, dtype=torch.float32)


@weighted_from_frames_backward.register_fake
def _(grad, messages, wigner, weights, target):
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(messages, memory_format=contiguous),
        torch.empty_like(weights, memory_format=contiguous),
    )


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])


def _differentiate(ctx, grad):
    grad_messages, grad_weights = weighted_from_frames_backward(grad, *ctx.saved_tensors)
    return grad_messages, None, grad_weights, None, None, None


weighted_from_frames.register_autograd(_differentiate, setup_context=_keep)
