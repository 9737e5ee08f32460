"""Messages of GotenNet's attention, fused.

Plain PyTorch gathers the features of the sources of all edges, and writes factors and messages of
[E, (L+1)^2, C] several times over. Here what belongs to nodes is read where it is, messages are
added up at their targets in registers, and gradients at their sources. No atomic additions: sums
have a fixed order.

Degrees up to 2. Features are [N, I, C] with scalars first; edges are sorted by both ends, see
:func:`est_ocp.nn.edge_rotation.edge_order`. Directions and cutoff get no gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from est_ocp.nn.triton.tensor_rows import degree_of, launch_settings, load_row


@triton.jit
def _weight(weight_ptr, edge, block, c, mask, channels, heads, run):
    """Attention weights of a block's channels: a head owns a run of channels of all blocks."""
    return load_row(weight_ptr + edge * heads + (block * channels + c) // run, mask)


@triton.jit
def _factor(
    spatial_ptr, gate_ptr, value_ptr, weight_ptr, edge, source, fade, block, c, mask,
    stride, channels, heads, run, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One block of ``o_ij``."""
    here = block * channels + c
    spatial = load_row(spatial_ptr + edge * stride + here, mask)
    gate = load_row(gate_ptr + source * BLOCKS * channels + here, mask)
    value = load_row(value_ptr + source * BLOCKS * channels + here, mask)
    weight = _weight(weight_ptr, edge, block, c, mask, channels, heads, run)
    return spatial * gate * fade + value * weight


@triton.jit
def _messages_kernel(
    spatial_ptr, gate_ptr, value_ptr, weight_ptr, x_ptr, harmonics_ptr, fade_ptr,
    source_ptr, permutation_ptr, offsets_ptr, out_ptr, stride, channels, heads, run,
    LMAX: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program a target and block of channels: the sum of its messages."""
    BLOCKS: tl.constexpr = 1 + 2 * LMAX
    ROWS: tl.constexpr = (LMAX + 1) * (LMAX + 1)
    node = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < channels
    a0 = tl.zeros((BLOCK_C,), dtype=tl.float32)
    a1, a2, a3, a4, a5, a6, a7, a8 = a0, a0, a0, a0, a0, a0, a0, a0
    for k in range(tl.load(offsets_ptr + node), tl.load(offsets_ptr + node + 1)):
        edge = tl.load(permutation_ptr + k)
        source = tl.load(source_ptr + edge)
        fade = tl.load(fade_ptr + edge).to(tl.float32)
        r = harmonics_ptr + edge * (ROWS - 1)
        x = x_ptr + source * ROWS * channels + c
        a0 += _factor(
            spatial_ptr, gate_ptr, value_ptr, weight_ptr, edge, source, fade, 0, c, mask,
            stride, channels, heads, run, BLOCKS,
        )  # fmt: skip
        along = _factor(
            spatial_ptr, gate_ptr, value_ptr, weight_ptr, edge, source, fade, 1, c, mask,
            stride, channels, heads, run, BLOCKS,
        )  # fmt: skip
        across = _factor(
            spatial_ptr, gate_ptr, value_ptr, weight_ptr, edge, source, fade, 1 + LMAX, c, mask,
            stride, channels, heads, run, BLOCKS,
        )  # fmt: skip
        a1 += along * tl.load(r).to(tl.float32) + across * load_row(x + channels, mask)
        a2 += along * tl.load(r + 1).to(tl.float32) + across * load_row(x + 2 * channels, mask)
        a3 += along * tl.load(r + 2).to(tl.float32) + across * load_row(x + 3 * channels, mask)
        if LMAX > 1:
            along = _factor(
                spatial_ptr, gate_ptr, value_ptr, weight_ptr, edge, source, fade, 2, c, mask,
                stride, channels, heads, run, BLOCKS,
            )  # fmt: skip
            across = _factor(
                spatial_ptr, gate_ptr, value_ptr, weight_ptr, edge, source, fade, 4, c, mask,
                stride, channels, heads, run, BLOCKS,
            )  # fmt: skip
            a4 += along * tl.load(r + 3).to(tl.float32) + across * load_row(x + 4 * channels, mask)
            a5 += along * tl.load(r + 4).to(tl.float32) + across * load_row(x + 5 * channels, mask)
            a6 += along * tl.load(r + 5).to(tl.float32) + across * load_row(x + 6 * channels, mask)
            a7 += along * tl.load(r + 6).to(tl.float32) + across * load_row(x + 7 * channels, mask)
            a8 += along * tl.load(r + 7).to(tl.float32) + across * load_row(x + 8 * channels, mask)
    out = out_ptr + node * ROWS * channels + c
    tl.store(out, a0, mask=mask)
    tl.store(out + channels, a1, mask=mask)
    tl.store(out + 2 * channels, a2, mask=mask)
    tl.store(out + 3 * channels, a3, mask=mask)
    if LMAX > 1:
        tl.store(out + 4 * channels, a4, mask=mask)
        tl.store(out + 5 * channels, a5, mask=mask)
        tl.store(out + 6 * channels, a6, mask=mask)
        tl.store(out + 7 * channels, a7, mask=mask)
        tl.store(out + 8 * channels, a8, mask=mask)


@triton.jit
def _through_factor(
    grad, spatial_ptr, gate, value, weight_ptr, grad_spatial_ptr, product_ptr,
    grad_gate, grad_value, edge, fade, block, c, mask, stride, channels, heads, run,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of ``o_ij``; returns those of the source, and the factor itself."""
    here = edge * BLOCKS * channels + block * channels + c
    spatial = load_row(spatial_ptr + edge * stride + block * channels + c, mask)
    weight = _weight(weight_ptr, edge, block, c, mask, channels, heads, run)
    kind = grad_spatial_ptr.dtype.element_ty
    tl.store(grad_spatial_ptr + here, (grad * gate * fade).to(kind), mask=mask)
    tl.store(product_ptr + here, (grad * value).to(product_ptr.dtype.element_ty), mask=mask)
    grad_gate += grad * spatial * fade
    grad_value += grad * weight
    return grad_gate, grad_value, spatial * gate * fade + value * weight


@triton.jit
def _messages_backward_kernel(
    grad_ptr, spatial_ptr, gate_ptr, value_ptr, weight_ptr, x_ptr, harmonics_ptr, fade_ptr,
    target_ptr, permutation_ptr, offsets_ptr,
    grad_spatial_ptr, grad_gate_ptr, grad_value_ptr, grad_x_ptr, product_ptr,
    stride, channels, heads, run, LMAX: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program a source and block of channels: its gradients, and those of its edges."""
    BLOCKS: tl.constexpr = 1 + 2 * LMAX
    ROWS: tl.constexpr = (LMAX + 1) * (LMAX + 1)
    node = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < channels
    mine = node * BLOCKS * channels + c
    zero = tl.zeros((BLOCK_C,), dtype=tl.float32)
    gate0, value0 = load_row(gate_ptr + mine, mask), load_row(value_ptr + mine, mask)
    gate1 = load_row(gate_ptr + mine + channels, mask)
    value1 = load_row(value_ptr + mine + channels, mask)
    gate2 = load_row(gate_ptr + mine + (1 + LMAX) * channels, mask)
    value2 = load_row(value_ptr + mine + (1 + LMAX) * channels, mask)
    x = x_ptr + node * ROWS * channels + c
    x1, x2 = load_row(x + channels, mask), load_row(x + 2 * channels, mask)
    x3 = load_row(x + 3 * channels, mask)
    gate3, value3, gate4, value4 = zero, zero, zero, zero
    x4, x5, x6, x7, x8 = zero, zero, zero, zero, zero
    if LMAX > 1:
        gate3 = load_row(gate_ptr + mine + 2 * channels, mask)
        value3 = load_row(value_ptr + mine + 2 * channels, mask)
        gate4 = load_row(gate_ptr + mine + 4 * channels, mask)
        value4 = load_row(value_ptr + mine + 4 * channels, mask)
        x4, x5 = load_row(x + 4 * channels, mask), load_row(x + 5 * channels, mask)
        x6, x7 = load_row(x + 6 * channels, mask), load_row(x + 7 * channels, mask)
        x8 = load_row(x + 8 * channels, mask)
    dg0, dg1, dg2, dg3, dg4 = zero, zero, zero, zero, zero
    dv0, dv1, dv2, dv3, dv4 = zero, zero, zero, zero, zero
    dx1, dx2, dx3, dx4, dx5, dx6, dx7, dx8 = zero, zero, zero, zero, zero, zero, zero, zero
    for k in range(tl.load(offsets_ptr + node), tl.load(offsets_ptr + node + 1)):
        edge = tl.load(permutation_ptr + k)
        grad = grad_ptr + tl.load(target_ptr + edge) * ROWS * channels + c
        fade = tl.load(fade_ptr + edge).to(tl.float32)
        r = harmonics_ptr + edge * (ROWS - 1)
        dg0, dv0, _ = _through_factor(
            load_row(grad, mask), spatial_ptr, gate0, value0, weight_ptr, grad_spatial_ptr,
            product_ptr, dg0, dv0, edge, fade, 0, c, mask, stride, channels, heads, run, BLOCKS,
        )  # fmt: skip
        g1, g2 = load_row(grad + channels, mask), load_row(grad + 2 * channels, mask)
        g3 = load_row(grad + 3 * channels, mask)
        along = g1 * tl.load(r).to(tl.float32) + g2 * tl.load(r + 1).to(tl.float32)
        along += g3 * tl.load(r + 2).to(tl.float32)
        dg1, dv1, _ = _through_factor(
            along, spatial_ptr, gate1, value1, weight_ptr, grad_spatial_ptr,
            product_ptr, dg1, dv1, edge, fade, 1, c, mask, stride, channels, heads, run, BLOCKS,
        )  # fmt: skip
        dg2, dv2, across = _through_factor(
            g1 * x1 + g2 * x2 + g3 * x3, spatial_ptr, gate2, value2, weight_ptr, grad_spatial_ptr,
            product_ptr, dg2, dv2, edge, fade, 1 + LMAX, c, mask,
            stride, channels, heads, run, BLOCKS,
        )  # fmt: skip
        dx1 += across * g1
        dx2 += across * g2
        dx3 += across * g3
        if LMAX > 1:
            g4, g5 = load_row(grad + 4 * channels, mask), load_row(grad + 5 * channels, mask)
            g6, g7 = load_row(grad + 6 * channels, mask), load_row(grad + 7 * channels, mask)
            g8 = load_row(grad + 8 * channels, mask)
            along = g4 * tl.load(r + 3).to(tl.float32) + g5 * tl.load(r + 4).to(tl.float32)
            along += g6 * tl.load(r + 5).to(tl.float32) + g7 * tl.load(r + 6).to(tl.float32)
            along += g8 * tl.load(r + 7).to(tl.float32)
            dg3, dv3, _ = _through_factor(
                along, spatial_ptr, gate3, value3, weight_ptr, grad_spatial_ptr,
                product_ptr, dg3, dv3, edge, fade, 2, c, mask, stride, channels, heads, run, BLOCKS,
            )  # fmt: skip
            dg4, dv4, across = _through_factor(
                g4 * x4 + g5 * x5 + g6 * x6 + g7 * x7 + g8 * x8, spatial_ptr, gate4, value4,
                weight_ptr, grad_spatial_ptr, product_ptr, dg4, dv4, edge, fade, 4, c, mask,
                stride, channels, heads, run, BLOCKS,
            )  # fmt: skip
            dx4 += across * g4
            dx5 += across * g5
            dx6 += across * g6
            dx7 += across * g7
            dx8 += across * g8
    tl.store(grad_gate_ptr + mine, dg0, mask=mask)
    tl.store(grad_value_ptr + mine, dv0, mask=mask)
    tl.store(grad_gate_ptr + mine + channels, dg1, mask=mask)
    tl.store(grad_value_ptr + mine + channels, dv1, mask=mask)
    tl.store(grad_gate_ptr + mine + (1 + LMAX) * channels, dg2, mask=mask)
    tl.store(grad_value_ptr + mine + (1 + LMAX) * channels, dv2, mask=mask)
    out = grad_x_ptr + node * ROWS * channels + c
    tl.store(out, zero, mask=mask)
    tl.store(out + channels, dx1, mask=mask)
    tl.store(out + 2 * channels, dx2, mask=mask)
    tl.store(out + 3 * channels, dx3, mask=mask)
    if LMAX > 1:
        tl.store(grad_gate_ptr + mine + 2 * channels, dg3, mask=mask)
        tl.store(grad_value_ptr + mine + 2 * channels, dv3, mask=mask)
        tl.store(grad_gate_ptr + mine + 4 * channels, dg4, mask=mask)
        tl.store(grad_value_ptr + mine + 4 * channels, dv4, mask=mask)
        tl.store(out + 4 * channels, dx4, mask=mask)
        tl.store(out + 5 * channels, dx5, mask=mask)
        tl.store(out + 6 * channels, dx6, mask=mask)
        tl.store(out + 7 * channels, dx7, mask=mask)
        tl.store(out + 8 * channels, dx8, mask=mask)


def _dense_rows(x: Tensor) -> Tensor:
    """``x`` [E, ...] with dense rows, any distance apart: parts of one wider tensor do."""
    return x if x.stride(1) == 1 else x.contiguous()


@torch.library.custom_op("est_ocp::tensor_messages", mutates_args=())
def tensor_messages(
    spatial: Tensor,
    gate: Tensor,
    value: Tensor,
    weights: Tensor,
    x: Tensor,
    harmonics: Tensor,
    fade: Tensor,
    edge_index: Tensor,
    permutation: Tensor,
    offsets: Tensor,
) -> Tensor:
    """Sum of all messages at their targets.

    Parameters
    ----------
    spatial : Tensor [E, (1 + 2 L) C]
        ``W_f t_ij``.
    gate, value : Tensor [N, (1 + 2 L) C]
        ``gamma_s`` and ``gamma_v`` of the nodes.
    weights : Tensor [E, heads]
        Attention weights, float32; ``heads`` divides ``(1 + 2 L) C``.
    x : Tensor [N, (L+1)**2, C]
        Features; scalars get no gradient here, as no message has them.
    harmonics : Tensor [E, (L+1)**2 - 1]
    fade : Tensor [E]
    edge_index : Tensor [2, E], int64
        Row 0 sources, row 1 targets.
    permutation : Tensor [2, E], int64
        Edges sorted by source and by target.
    offsets : Tensor [2, N + 1], int64
        Where the edges of each node begin in the permutation.

    Returns
    -------
    Tensor [N, (L+1)**2, C], float32
        Zero for nodes without edges.
    """
    spatial = _dense_rows(spatial)
    num_nodes, _, channels = x.shape
    out = x.new_empty(x.shape, dtype=torch.float32)
    if num_nodes:
        blocks, launch = launch_settings(channels)
        heads = weights.shape[1]
        _messages_kernel[(num_nodes, blocks)](
            spatial, gate.contiguous(), value.contiguous(), weights.contiguous(),
            x.contiguous(), harmonics.contiguous(), fade.contiguous(),
            edge_index[0].contiguous(), permutation[1].contiguous(), offsets[1].contiguous(), out,
            spatial.stride(0), channels, heads, gate.shape[1] // heads,
            LMAX=degree_of(x.shape[1]), **launch,
        )  # fmt: skip
    return out


@torch.library.custom_op("est_ocp::tensor_messages_backward", mutates_args=())
def tensor_messages_backward(
    grad: Tensor,
    spatial: Tensor,
    gate: Tensor,
    value: Tensor,
    weights: Tensor,
    x: Tensor,
    harmonics: Tensor,
    fade: Tensor,
    edge_index: Tensor,
    permutation: Tensor,
    offsets: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``spatial``, ``gate``, ``value``, ``x``; products that ``weights`` multiply.

    The last, [E, (1 + 2 L) C], summed over the channels of a head, is the gradient of
    ``weights``. Those of nodes are float32.
    """
    spatial = _dense_rows(spatial)
    num_nodes, _, channels = x.shape
    grad_spatial, products = spatial.new_empty(spatial.shape), spatial.new_empty(spatial.shape)
    grad_gate = gate.new_empty(gate.shape, dtype=torch.float32)
    grad_value, grad_x = torch.empty_like(grad_gate), x.new_empty(x.shape, dtype=torch.float32)
    if num_nodes:
        blocks, launch = launch_settings(channels)
        heads = weights.shape[1]
        _messages_backward_kernel[(num_nodes, blocks)](
            grad.contiguous(), spatial, gate.contiguous(), value.contiguous(),
            weights.contiguous(), x.contiguous(), harmonics.contiguous(), fade.contiguous(),
            edge_index[1].contiguous(), permutation[0].contiguous(), offsets[0].contiguous(),
            grad_spatial, grad_gate, grad_value, grad_x, products,
            spatial.stride(0), channels, heads, gate.shape[1] // heads,
            LMAX=degree_of(x.shape[1]), **launch,
        )  # fmt: skip
    return grad_spatial, grad_gate, grad_value, grad_x, products


@tensor_messages.register_fake
def _(spatial, gate, value, weights, x, *edges):
    return x.new_empty(x.shape, dtype=torch.float32)


@tensor_messages_backward.register_fake
def _(grad, spatial, gate, value, weights, x, *edges):
    return (
        spatial.new_empty(spatial.shape),
        gate.new_empty(gate.shape, dtype=torch.float32),
        gate.new_empty(gate.shape, dtype=torch.float32),
        x.new_empty(x.shape, dtype=torch.float32),
        spatial.new_empty(spatial.shape),
    )


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _messages_backward(ctx, grad):
    _, gate, value, weights, x, *_ = ctx.saved_tensors
    spatial, of_gate, of_value, of_x, products = tensor_messages_backward(grad, *ctx.saved_tensors)
    of_weights = products.unflatten(1, (weights.shape[1], -1)).sum(dim=2, dtype=weights.dtype)
    nodes = (of_gate.to(gate.dtype), of_value.to(value.dtype), of_weights, of_x.to(x.dtype))
    return spatial, *nodes, None, None, None, None, None


tensor_messages.register_autograd(_messages_backward, setup_context=_keep)
