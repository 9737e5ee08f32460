"""Node features into the frames of their edges, and messages back to the nodes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from est_ocp.nn.scatter import scatter_sum
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


def rotate_to_frames(
    x: torch.Tensor,
    wigner: torch.Tensor,
    edge_index: torch.Tensor,
    order: EdgeOrder | None = None,
) -> torch.Tensor:
    """Rotate the features of both ends of every edge into its frame.

    Parameters
    ----------
    x : Tensor [N, (lmax+1)**2, C]
    wigner : Tensor [E, R, (lmax+1)**2]
        From :class:`est_ocp.nn.EdgeFrame`, in the type of `x`.
    edge_index : Tensor [2, E]
        Row 0 sources, row 1 targets.
    order : EdgeOrder, optional
        Allows the fused kernel where it applies (not where `wigner` needs a gradient).

    Returns
    -------
    Tensor [E, R, 2 * C]
        The source's channels before the target's.
    """
    if order is not None and not wigner.requires_grad and can_fuse(x):
        from est_ocp.nn.triton.edge_rotation import to_frames

        return to_frames(x, wigner, edge_index, order.permutation, order.offsets)
    return torch.cat([torch.bmm(wigner, x[nodes]) for nodes in edge_index], dim=2)


def sum_from_frames(
    messages: torch.Tensor,
    wigner: torch.Tensor,
    edge_index: torch.Tensor,
    num_nodes: int,
    order: EdgeOrder | None = None,
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
        As for :func:`rotate_to_frames`.

    Returns
    -------
    Tensor [N, I, C]
        In at least float32; zero for nodes without edges.
    """
    if order is not None and not wigner.requires_grad and can_fuse(messages):
        from est_ocp.nn.triton.edge_rotation import from_frames

        return from_frames(
            messages, wigner, edge_index[1:], order.permutation[1:], order.offsets[1:]
        )
    rotated = torch.bmm(wigner.transpose(1, 2), messages)
    return scatter_sum(rotated, edge_index[1], num_nodes)
