"""Sums and softmax over the edges that point at a node."""

from __future__ import annotations

import torch


def scatter_sum(messages: torch.Tensor, target: torch.Tensor, num_nodes: int) -> torch.Tensor:
    """Add up the messages of each target node in at least float32.

    Parameters
    ----------
    messages : Tensor [E, ...]
        Any number of further axes.
    target : Tensor [E], int64
        Target node of each edge.
    num_nodes : int
        Number of nodes.

    Returns
    -------
    Tensor [num_nodes, ...]
        Zero for nodes without edges.
    """
    messages = messages.to(torch.promote_types(messages.dtype, torch.float32))
    total = messages.new_zeros(num_nodes, *messages.shape[1:])
    return total.index_add(0, target, messages)


def edge_softmax(logits: torch.Tensor, target: torch.Tensor, num_nodes: int) -> torch.Tensor:
    """Normalise logits over the edges of each target node, in at least float32.

    Parameters
    ----------
    logits : Tensor [E, H]
        One logit an edge and head.
    target : Tensor [E], int64
        Target node of each edge.
    num_nodes : int
        Number of nodes.

    Returns
    -------
    Tensor [E, H]
        Weights that sum to one over the edges of each target.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Subtracting any constant of a node leaves the weights alone, so no gradient is needed here.
    fixed = logits.detach()
    index = target.unsqueeze(-1).expand_as(fixed)
    largest = fixed.new_full((num_nodes, fixed.shape[1]), -torch.inf)
    largest = largest.scatter_reduce(0, index, fixed, reduce="amax")
    weights = torch.exp(logits - largest[target])
    return weights / scatter_sum(weights, target, num_nodes)[target]
