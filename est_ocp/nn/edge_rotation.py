"""Node features into the frames of their edges, and messages back to the nodes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from est_ocp.nn.scatter import scatter_sum
from est_ocp.nn.so2_convolution import sort_by_order
from est_ocp.nn.triton.launch import aligned_columns
from est_ocp.nn.triton.support import can_fuse


class EdgeOrder(NamedTuple):
    """Edges sorted by their source and by their target, which the fused kernels need.

    Attributes
    ----------
    permutation : Tensor [2, E], int64
        Edges in the order of their source (row 0) and of their target (row 1).
    offsets : Tensor [2, N + 1], int64
        Where the edges of each node begin in the permutation.
    """

    permutation: torch.Tensor
    offsets: torch.Tensor


def edge_order(edge_index: torch.Tensor, num_nodes: int) -> EdgeOrder:
    """Sort the edges ``edge_index`` [2, E] by both of their ends."""
    ends, permutation = edge_index.sort(dim=1, stable=True)
    nodes = torch.arange(num_nodes + 1, device=edge_index.device)
    return EdgeOrder(permutation, torch.searchsorted(ends, nodes.expand(2, -1).contiguous()))


def can_fuse_rotation(x: torch.Tensor, wigner: torch.Tensor, order: EdgeOrder | None) -> bool:
    """Whether features `x` on nodes or edges are rotated by the fused kernels.

    They need the order of the edges, and have no gradient with respect to `wigner`.
    """
    return order is not None and not wigner.requires_grad and can_fuse(x)


def align_rotations(wigner: torch.Tensor, order: EdgeOrder | None) -> torch.Tensor:
    """Lay out rotations so that the fused kernels read them in the widest loads.

    Parameters
    ----------
    wigner : Tensor [E, R, I]
    order : EdgeOrder or None
        What the kernels will be given.

    Returns
    -------
    Tensor [E, R, I]
        Where the kernels apply (:func:`can_fuse_rotation`) a view of rows padded with zeros to a
        multiple of 16 bytes, else `wigner` itself.
    """
    if not can_fuse_rotation(wigner, wigner, order):
        return wigner
    columns = wigner.shape[2]
    padding = aligned_columns(columns, wigner.element_size()) - columns
    return torch.nn.functional.pad(wigner, (0, padding))[:, :, :columns]


def rotate_to_frames(
    x: torch.Tensor, wigner: torch.Tensor, edge_index: torch.Tensor
) -> torch.Tensor:
    """Rotate the features of both ends of every edge into its frame.

    Parameters
    ----------
    x : Tensor [N, (lmax+1)**2, C]
    wigner : Tensor [E, R, (lmax+1)**2]
        From :class:`est_ocp.nn.EdgeFrame`, in the type of `x`.
    edge_index : Tensor [2, E]
        Row 0 sources, row 1 targets.

    Returns
    -------
    Tensor [E, R, 2 * C]
        The source's channels before the target's.
    """
    return torch.cat([torch.bmm(wigner, x[nodes]) for nodes in edge_index], dim=2)


def rotate_by_order(
    x: torch.Tensor,
    wigner: torch.Tensor,
    radial: torch.Tensor,
    edge_index: torch.Tensor,
    degrees: int,
    orders: int,
    order: EdgeOrder | None = None,
) -> list[torch.Tensor]:
    """Rotate both ends of every edge into its frame, times radial weights, sorted by order.

    Parameters
    ----------
    x, wigner, edge_index
        As for :func:`rotate_to_frames`.
    radial : Tensor [E, W]
        A weight for each order, degree and channel of the two ends.
    degrees, orders : int
        Degrees, lmax + 1, and orders wanted, mmax + 1.
    order : EdgeOrder, optional
        Allows the fused kernel where it applies (:func:`can_fuse_rotation`).

    Returns
    -------
    list of Tensor
        Inputs of :meth:`est_ocp.nn.SO2Convolution.multiply`, see
        :func:`est_ocp.nn.so2_convolution.sort_by_order`.
    """
    if can_fuse_rotation(x, wigner, order) and radial.dtype == x.dtype:
        from est_ocp.nn.triton.edge_orders import to_orders

        return to_orders(x, wigner, radial, edge_index, *order, degrees, orders)
    return sort_by_order(rotate_to_frames(x, wigner, edge_index), degrees, orders, radial)


def sum_from_frames(
    messages: torch.Tensor,
    wigner: torch.Tensor,
    edge_index: torch.Tensor,
    num_nodes: int,
    order: EdgeOrder | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotate messages out of the frames of their edges and add them up at the targets.

    Parameters
    ----------
    messages : Tensor [E, R, C]
    wigner : Tensor [E, R, I]
        In the type of `messages`.
    edge_index : Tensor [2, E]
    num_nodes : int
        Number of nodes, N.
    order : EdgeOrder, optional
        Allows the fused kernels where they apply (:func:`can_fuse_rotation`).
    weights : Tensor [E, H], optional
        Multiply the messages: one weight for each of H groups of C / H channels.

    Returns
    -------
    Tensor [N, I, C]
        In at least float32; zero for nodes without edges.
    """
    if can_fuse_rotation(messages, wigner, order):
        return _fused_sum_from_frames(messages, wigner, edge_index, order, weights)
    if weights is not None:
        weights = weights.to(messages.dtype)
        heads = messages.unflatten(2, (weights.shape[1], -1))
        messages = (heads * weights[:, None, :, None]).flatten(2)
    rotated = torch.bmm(wigner.transpose(1, 2), messages)
    return scatter_sum(rotated, edge_index[1], num_nodes)


def _fused_sum_from_frames(
    messages: torch.Tensor,
    wigner: torch.Tensor,
    edge_index: torch.Tensor,
    order: EdgeOrder,
    weights: torch.Tensor | None,
) -> torch.Tensor:
    if weights is None:
        from est_ocp.nn.triton.edge_rotation import from_frames

        return from_frames(
            messages, wigner, edge_index[1:], order.permutation[1:], order.offsets[1:]
        )
    from est_ocp.nn.triton.edge_sum import weighted_from_frames

    return weighted_from_frames(
        messages, wigner, weights, edge_index[1], order.permutation[1], order.offsets[1]
    )
