"""Inputs of an SO(2) convolution straight from node features, fused.

Rotating the features of both ends of every edge into its frame, multiplying them by radial weights
and sorting them by order is one kernel: only the result is written. One kernel differentiates all
of it. It goes through the edges of each node, so the sum over them needs no atomic additions, and
the gradient of the radial weights needs the node's features once and not once an edge.

Radial weights have one row for each order and degree; the frame's rows ``+m`` and ``-m`` share it.
Both kernels therefore work on two tiles of as many rows as there are weights, one a sign (that of
``-m`` lacks order 0): multiplying by the weights, and adding up their gradient over the two signs,
are then elementwise.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from est_ocp.nn.triton.launch import Launch, Launches, rotation_layout, with_contiguous_rows
from est_ocp.nn.triton.support import block_size

#: Settings of the two kernels.
FORWARD = Launch(num_warps=2, edges=4)
BACKWARD = Launches(half=Launch(num_warps=2), single=Launch(row_bytes=512))


@triton.jit
def _rows(
    MINUS: tl.constexpr, DEGREES: tl.constexpr, ORDERS: tl.constexpr, BLOCK_W: tl.constexpr
):  # fmt: skip
    """Row in the frame of each weight and one sign, and whether there is one."""
    weight = tl.arange(0, BLOCK_W)
    row = weight
    for order in tl.static_range(1, ORDERS):
        first = order * DEGREES - order * (order - 1) // 2
        member = weight - first + MINUS * (DEGREES - order)
        row = tl.where(weight >= first, 2 * first - DEGREES + member, row)
    exists = weight < ORDERS * DEGREES - ORDERS * (ORDERS - 1) // 2
    if MINUS:
        exists = exists & (weight >= DEGREES)
    return row, exists


@triton.jit
def _pointers(
    order_ptrs, edge, across, MINUS: tl.constexpr, DEGREES: tl.constexpr, ORDERS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Where an edge's rows of one sign lie in the tensors by order, [BLOCK_W, BLOCK_C]."""
    # Whole tiles are selected, and not their first columns: the compiler then knows that rows are
    # contiguous and aligned, and moves 16 bytes at a time.
    weight = tl.arange(0, BLOCK_W)[:, None]
    pointers = order_ptrs[0] + edge * (DEGREES * WIDTH) + weight * WIDTH + across[None, :]
    for order in tl.static_range(1, ORDERS):
        count = DEGREES - order
        first = order * DEGREES - order * (order - 1) // 2
        member = weight - first + MINUS * count
        mine = order_ptrs[order] + edge * (2 * count * WIDTH) + member * WIDTH + across[None, :]
        pointers = tl.where(weight >= first, mine, pointers)
    return pointers


@triton.jit
def _load_wigner(
    ptr, edge, row, exists, EDGE_STRIDE: tl.constexpr, ROW_STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Rows [BLOCK_W, BLOCK_I] of an edge's rotation."""
    columns = tl.arange(0, BLOCK_I)
    return tl.load(
        ptr + edge * EDGE_STRIDE + row[:, None] * ROW_STRIDE + columns[None, :],
        mask=exists[:, None] & (columns[None, :] < COLUMNS),
        other=0.0,
    )


@triton.jit
def _load_signs(
    ptr, edge, DEGREES: tl.constexpr, ORDERS: tl.constexpr, EDGE_STRIDE: tl.constexpr,
    ROW_STRIDE: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Both tiles of an edge's rotation; that of ``-m`` is zero where there is only order 0."""
    row, exists = _rows(0, DEGREES, ORDERS, BLOCK_W)
    plus = _load_wigner(ptr, edge, row, exists, EDGE_STRIDE, ROW_STRIDE, COLUMNS, BLOCK_I)
    row, exists = _rows(1, DEGREES, ORDERS, BLOCK_W)
    minus = _load_wigner(ptr, edge, row, exists, EDGE_STRIDE, ROW_STRIDE, COLUMNS, BLOCK_I)
    return plus, minus


@triton.jit(do_not_specialize=["num_edges"])
def _forward_kernel(
    x_ptr, wigner_ptr, radial_ptr, index_ptr, out_ptrs, num_edges,
    EDGE_STRIDE: tl.constexpr, ROW_STRIDE: tl.constexpr, COLUMNS: tl.constexpr,
    COEFFICIENTS: tl.constexpr, CHANNELS: tl.constexpr, ENDS: tl.constexpr,
    DEGREES: tl.constexpr, ORDERS: tl.constexpr,
    EDGES: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program a few edges, end and block of channels: ``out[e] = radial[e] * W[e] x[node]``."""
    WIDTH: tl.constexpr = ENDS * CHANNELS
    WEIGHTS: tl.constexpr = ORDERS * DEGREES - ORDERS * (ORDERS - 1) // 2
    CHANNEL_BLOCKS: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    part = program % (ENDS * CHANNEL_BLOCKS)
    end = part // CHANNEL_BLOCKS
    c = part % CHANNEL_BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
    begin = (program // (ENDS * CHANNEL_BLOCKS)).to(tl.int64) * EDGES
    weight = tl.arange(0, BLOCK_W)
    columns = tl.arange(0, BLOCK_I)
    within = (c < CHANNELS)[None, :]
    plus_row, plus_exists = _rows(0, DEGREES, ORDERS, BLOCK_W)
    minus_row, minus_exists = _rows(1, DEGREES, ORDERS, BLOCK_W)
    across = end * CHANNELS + c
    for edge in range(begin, tl.minimum(begin + EDGES, num_edges)):
        node = tl.load(index_ptr + end * num_edges + edge)
        x = tl.load(
            x_ptr + node * COEFFICIENTS * CHANNELS + columns[:, None] * CHANNELS + c[None, :],
            mask=(columns[:, None] < COEFFICIENTS) & within,
            other=0.0,
        )
        radial = tl.load(
            radial_ptr + edge * WEIGHTS * WIDTH + weight[:, None] * WIDTH + across[None, :],
            mask=(weight[:, None] < WEIGHTS) & within,
            other=0.0,
        ).to(tl.float32)
        wigner = _load_wigner(
            wigner_ptr, edge, plus_row, plus_exists, EDGE_STRIDE, ROW_STRIDE, COLUMNS, BLOCK_I
        )
        tl.store(
            _pointers(out_ptrs, edge, across, 0, DEGREES, ORDERS, WIDTH, BLOCK_W),
            (tl.dot(wigner, x) * radial).to(x.dtype),
            mask=plus_exists[:, None] & within,
        )
        if ORDERS > 1:
            wigner = _load_wigner(
                wigner_ptr, edge, minus_row, minus_exists, EDGE_STRIDE, ROW_STRIDE, COLUMNS, BLOCK_I
            )
            tl.store(
                _pointers(out_ptrs, edge, across, 1, DEGREES, ORDERS, WIDTH, BLOCK_W),
                (tl.dot(wigner, x) * radial).to(x.dtype),
                mask=minus_exists[:, None] & within,
            )


@triton.jit(do_not_specialize=["num_edges", "num_nodes"])
def _backward_kernel(
    grad_ptrs, x_ptr, wigner_ptr, radial_ptr, permutation_ptr, offsets_ptr, grad_x_ptr,
    grad_radial_ptr, num_edges, num_nodes,
    EDGE_STRIDE: tl.constexpr, ROW_STRIDE: tl.constexpr, COLUMNS: tl.constexpr,
    COEFFICIENTS: tl.constexpr, CHANNELS: tl.constexpr, ENDS: tl.constexpr,
    DEGREES: tl.constexpr, ORDERS: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program a node and block of channels; each edge is visited once from each end.

    The gradient of the node's features is the sum of ``W[e]^T (radial[e] * grad[e])``; that of
    the end's channels of the radial weights is ``grad[e] * W[e] x[node]``.
    """
    WIDTH: tl.constexpr = ENDS * CHANNELS
    WEIGHTS: tl.constexpr = ORDERS * DEGREES - ORDERS * (ORDERS - 1) // 2
    CHANNEL_BLOCKS: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    node = (program // CHANNEL_BLOCKS).to(tl.int64)
    c = program % CHANNEL_BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
    weight = tl.arange(0, BLOCK_W)
    columns = tl.arange(0, BLOCK_I)
    within = (c < CHANNELS)[None, :]
    features = node * COEFFICIENTS * CHANNELS + columns[:, None] * CHANNELS + c[None, :]
    feature_mask = (columns[:, None] < COEFFICIENTS) & within
    x = tl.load(x_ptr + features, mask=feature_mask, other=0.0)
    _, plus_exists = _rows(0, DEGREES, ORDERS, BLOCK_W)
    _, minus_exists = _rows(1, DEGREES, ORDERS, BLOCK_W)
    total = tl.zeros((BLOCK_I, BLOCK_C), dtype=tl.float32)
    for end in tl.static_range(ENDS):
        across = end * CHANNELS + c
        begin = tl.load(offsets_ptr + end * (num_nodes + 1) + node)
        stop = tl.load(offsets_ptr + end * (num_nodes + 1) + node + 1)
        for k in range(begin, stop):
            edge = tl.load(permutation_ptr + end * num_edges + k)
            plus, minus = _load_signs(
                wigner_ptr, edge, DEGREES, ORDERS, EDGE_STRIDE, ROW_STRIDE, COLUMNS,
                BLOCK_W, BLOCK_I,
            )  # fmt: skip
            where_radial = edge * WEIGHTS * WIDTH + weight[:, None] * WIDTH + across[None, :]
            radial_mask = (weight[:, None] < WEIGHTS) & within
            radial = tl.load(radial_ptr + where_radial, mask=radial_mask, other=0.0).to(tl.float32)
            grad = tl.load(
                _pointers(grad_ptrs, edge, across, 0, DEGREES, ORDERS, WIDTH, BLOCK_W),
                mask=plus_exists[:, None] & within,
                other=0.0,
            ).to(tl.float32)
            total = tl.dot(tl.trans(plus), (grad * radial).to(x.dtype), total)
            grad_radial = grad * tl.dot(plus, x)
            if ORDERS > 1:
                grad = tl.load(
                    _pointers(grad_ptrs, edge, across, 1, DEGREES, ORDERS, WIDTH, BLOCK_W),
                    mask=minus_exists[:, None] & within,
                    other=0.0,
                ).to(tl.float32)
                total = tl.dot(tl.trans(minus), (grad * radial).to(x.dtype), total)
                grad_radial += grad * tl.dot(minus, x)
            tl.store(grad_radial_ptr + where_radial, grad_radial.to(x.dtype), mask=radial_mask)
    tl.store(grad_x_ptr + features, total.to(x.dtype), mask=feature_mask)


def order_widths(degrees: int, orders: int, width: int) -> list[int]:
    """Elements an edge of the tensor of each order, for rows of ``width`` channels."""
    return [degrees * width] + [2 * (degrees - order) * width for order in range(1, orders)]


def _sizes(x: Tensor, wigner: Tensor, ends: int, degrees: int, orders: int) -> dict[str, int]:
    weights = orders * degrees - orders * (orders - 1) // 2
    return {
        **rotation_layout(wigner),
        "COEFFICIENTS": wigner.shape[2],
        "CHANNELS": x.shape[2],
        "ENDS": ends,
        "DEGREES": degrees,
        "ORDERS": orders,
        "BLOCK_W": block_size(weights),
        "BLOCK_I": block_size(wigner.shape[2]),
    }


def launch_forward(
    x: Tensor,
    wigner: Tensor,
    radial: Tensor,
    index: Tensor,
    degrees: int,
    orders: int,
    launch: Launch = FORWARD,
) -> list[Tensor]:
    """Run the forward kernel, see :func:`to_orders`."""
    x, radial, index = x.contiguous(), radial.contiguous(), index.contiguous()
    wigner = with_contiguous_rows(wigner)
    ends, num_edges = index.shape
    channels = x.shape[2]
    widths = order_widths(degrees, orders, ends * channels)
    out = [x.new_empty(num_edges, width) for width in widths]
    if num_edges:
        block = launch.channel_block(channels, x.element_size())
        programs = triton.cdiv(num_edges, launch.edges) * ends * triton.cdiv(channels, block)
        _forward_kernel[(programs,)](
            x, wigner, radial, index, tuple(out), num_edges,
            **_sizes(x, wigner, ends, degrees, orders), EDGES=launch.edges, BLOCK_C=block,
            num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip
    return out


def launch_backward(
    grads: list[Tensor],
    x: Tensor,
    wigner: Tensor,
    radial: Tensor,
    permutation: Tensor,
    offsets: Tensor,
    degrees: int,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the backward kernel, see :func:`to_orders_backward`."""
    x, wigner, radial = x.contiguous(), with_contiguous_rows(wigner), radial.contiguous()
    permutation, offsets = permutation.contiguous(), offsets.contiguous()
    grads = tuple(grad.contiguous() for grad in grads)
    ends, num_edges = permutation.shape
    num_nodes, channels = x.shape[0], x.shape[2]
    grad_radial = torch.empty_like(radial)
    if not num_edges:
        return torch.zeros_like(x), grad_radial
    grad_x = torch.empty_like(x)
    launch = launch or BACKWARD.of(x)
    block = launch.channel_block(channels, x.element_size())
    _backward_kernel[(num_nodes * triton.cdiv(channels, block),)](
        grads, x, wigner, radial, permutation, offsets, grad_x, grad_radial,
        num_edges, num_nodes, **_sizes(x, wigner, ends, degrees, len(grads)),
        BLOCK_C=block, num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip
    return grad_x, grad_radial


@torch.library.custom_op("est_ocp::to_orders", mutates_args=())
def to_orders(
    x: Tensor,
    wigner: Tensor,
    radial: Tensor,
    index: Tensor,
    permutation: Tensor,
    offsets: Tensor,
    degrees: int,
    orders: int,
) -> list[Tensor]:
    """Rotate the ends of every edge into its frame, times radial weights, sorted by order.

    Parameters
    ----------
    x : Tensor [N, I, C]
    wigner : Tensor [E, R, I]
        Order-major rows of at least the orders wanted; it gets no gradient. Read as it lies,
        fastest from :func:`est_ocp.nn.edge_rotation.align_rotations`.
    radial : Tensor [E, W]
        A weight for each order, degree and channel of the J ends. `wigner` and `radial` are in
        the type of `x`.
    index : Tensor [J, E], int64
        Nodes at the J ends of every edge.
    permutation : Tensor [J, E], int64
        Edges sorted by their node, for each end.
    offsets : Tensor [J, N + 1], int64
        Where the edges of each node begin in the permutation.
    degrees : int
        Degrees of the features, lmax + 1.
    orders : int
        Orders wanted, mmax + 1.

    Returns
    -------
    list of Tensor
        For order 0 [E, degrees * J * C], for each order m above it the rows ``+m`` and then
        ``-m``, [E, 2 * (degrees - m) * J * C]; in a row one end after the other.
    """
    return launch_forward(x, wigner, radial, index, degrees, orders)


@torch.library.custom_op("est_ocp::to_orders_backward", mutates_args=())
def to_orders_backward(
    grads: list[Tensor],
    x: Tensor,
    wigner: Tensor,
    radial: Tensor,
    permutation: Tensor,
    offsets: Tensor,
    degrees: int,
) -> tuple[Tensor, Tensor]:
    """Gradients [N, I, C] and [E, W] of the features and radial weights of :func:`to_orders`."""
    return launch_backward(grads, x, wigner, radial, permutation, offsets, degrees)


@to_orders.register_fake
def _(x, wigner, radial, index, permutation, offsets, degrees, orders):
    widths = order_widths(degrees, orders, index.shape[0] * x.shape[2])
    return [x.new_empty(index.shape[1], width) for width in widths]


@to_orders_backward.register_fake
def _(grads, x, wigner, radial, permutation, offsets, degrees):
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(x, memory_format=contiguous),
        torch.empty_like(radial, memory_format=contiguous),
    )


def _keep(ctx, inputs, output):
    x, wigner, radial, _, permutation, offsets, ctx.degrees, _ = inputs
    ctx.save_for_backward(x, wigner, radial, permutation, offsets)


def _differentiate(ctx, grads):
    grad_x, grad_radial = to_orders_backward(grads, *ctx.saved_tensors, ctx.degrees)
    return grad_x, None, grad_radial, None, None, None, None, None


to_orders.register_autograd(_differentiate, setup_context=_keep)
