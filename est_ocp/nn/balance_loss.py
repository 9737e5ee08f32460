"""How evenly a gate uses its experts: a loss and statistics."""

from __future__ import annotations

import math

import torch

from est_ocp.errors import ConfigError


def load_balance_loss(
    gate_probs: torch.Tensor,
    top_k: int | None = None,
    batch: torch.Tensor | None = None,
    num_graphs: int | None = None,
) -> torch.Tensor:
    """Auxiliary loss of uneven expert use, zero at uniform use.

    ``E sum_e f_e P_e - 1``, where ``P_e`` is the mean probability of expert ``e`` and ``f_e`` the
    share of the nodes' choices that went to it (Switch Transformer, arXiv 2101.03961, eq. 4-6,
    with ``K`` choices a node). Choices have no gradient, so ``f`` is a constant. A dense gate
    makes no choices; there ``f_e = P_e``, and the loss is the squared coefficient of variation of
    the mean probabilities: it is at least zero, at most ``E - 1``, and zero only at uniform use.

    Parameters
    ----------
    gate_probs : Tensor [N, E]
        Softmax of an expert gate before its top-K: what :class:`est_ocp.nn.GateRecorder` records.
        Experts that nobody chooses still get a gradient from it.
    top_k : int, optional
        K of the gate; None if it is dense.
    batch : Tensor [N], int64, optional
        Graph of each node. If given, use is measured within each graph.
    num_graphs : int, optional
        Number G of graphs; required with `batch`.

    Returns
    -------
    Tensor, scalar or [G]
        Loss over all nodes, or of each graph. Zero where there are no nodes.

    Raises
    ------
    ConfigError
        If `batch` comes without `num_graphs`.
    """
    if batch is None:
        return _graph_losses(gate_probs, top_k, gate_probs.new_zeros(len(gate_probs)).long(), 1)[0]
    if num_graphs is None:
        raise ConfigError("the balance loss per graph needs num_graphs together with batch")
    return _graph_losses(gate_probs, top_k, batch, num_graphs)


def _graph_losses(
    gate_probs: torch.Tensor, top_k: int | None, batch: torch.Tensor, num_graphs: int
) -> torch.Tensor:
    num_experts = gate_probs.shape[1]
    nodes = gate_probs.new_zeros(num_graphs).index_add(
        0, batch, gate_probs.new_ones(batch.shape[0])
    )

    def graph_mean(values: torch.Tensor) -> torch.Tensor:
        total = values.new_zeros(num_graphs, num_experts).index_add(0, batch, values)
        return total / nodes.clamp_min(1.0).unsqueeze(1)

    mean_probability = graph_mean(gate_probs)
    if top_k is None:
        share = mean_probability
    else:
        chosen = gate_probs.detach().topk(top_k, dim=-1).indices
        choices = torch.zeros_like(gate_probs).scatter(-1, chosen, 1.0)
        share = graph_mean(choices) / top_k
    loss = num_experts * (share * mean_probability).sum(dim=1) - 1.0
    return torch.where(nodes > 0, loss, torch.zeros_like(loss))


def expert_usage(gate_probs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Statistics of a gate, without gradient.

    Parameters
    ----------
    gate_probs : Tensor [N, E]
        Output of an expert gate; at least one node.

    Returns
    -------
    dict of str to Tensor
        ``mean_usage`` [E]: mean probability of each expert. ``usage_entropy``: entropy of
        `mean_usage` over ``log E``; 1 when all experts carry the same load, 0 when one carries
        it all. ``gate_entropy``: mean over nodes of the entropy of one node's probabilities over
        ``log E``; 1 when every node mixes all experts evenly, 0 when every node picks one.
    """
    probabilities = gate_probs.detach()
    mean_usage = probabilities.mean(dim=0)
    norm = math.log(probabilities.shape[1])
    return {
        "mean_usage": mean_usage,
        "usage_entropy": torch.special.entr(mean_usage).sum() / norm,
        "gate_entropy": torch.special.entr(probabilities).sum(dim=1).mean() / norm,
    }
