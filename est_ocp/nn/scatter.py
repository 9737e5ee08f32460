"""Sums and softmax over the edges that point at a node."""

from __future__ import annotations

import torch

#: Envelopes count as at least this in the softmax, so that its logarithm and two derivatives of
#: it are finite in float32. What smaller ones lack is below any rounding.
SMALLEST_ENVELOPE = 1e-15


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


def edge_softmax(
    logits: torch.Tensor,
    target: torch.Tensor,
    num_nodes: int,
    envelope: torch.Tensor | None = None,
) -> torch.Tensor:
    """Normalise logits over the edges of each target node, in at least float32.

    With an envelope ``u`` the weights are ``u_e * u_e exp(l_e) / sum_e' u_e' exp(l_e')``. The
    inner factors take an edge that fades out of the sums of the others; but a lone edge, however
    faint, would keep weight one: the outer factor takes it away too.

    Parameters
    ----------
    logits : Tensor [E, H]
        One logit an edge and head.
    target : Tensor [E], int64
        Target node of each edge.
    num_nodes : int
        Number of nodes.
    envelope : Tensor [E], optional
        Values in 0..1, in at least float32.

    Returns
    -------
    Tensor [E, H]
        Weights that sum to one over the edges of each target, or to less with an envelope.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if envelope is not None:
        envelope = envelope.unsqueeze(-1)
        logits = logits + envelope.clamp(min=SMALLEST_ENVELOPE).log()
    # Subtracting any constant of a node leaves the weights alone, so no gradient is needed here.
    fixed = logits.detach()
    index = target.unsqueeze(-1).expand_as(fixed)
    largest = fixed.new_full((num_nodes, fixed.shape[1]), -torch.inf)
    largest = largest.scatter_reduce(0, index, fixed, reduce="amax")
    weights = torch.exp(logits - largest.index_select(0, target))
    # index_select: the gradient of indexing would sort the edges.
    weights = weights / scatter_sum(weights, target, num_nodes).index_select(0, target)
    return weights if envelope is None else weights * envelope
