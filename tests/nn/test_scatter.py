"""Sums and softmax over the edges of a node."""

from __future__ import annotations

import torch
from torch_geometric.utils import softmax

from est_ocp.nn.scatter import edge_softmax, scatter_sum


def test_softmax_agrees_with_torch_geometric() -> None:
    torch.manual_seed(0)
    logits = 30 * torch.randn(50, 3, dtype=torch.float64)
    target = torch.randint(0, 7, (50,))
    weights = edge_softmax(logits, target, 9)
    torch.testing.assert_close(weights, softmax(logits, target, num_nodes=9))
    total = scatter_sum(weights, target, 9)
    torch.testing.assert_close(total[:7], torch.ones(7, 3, dtype=torch.float64))
    assert (total[7:] == 0).all()


def test_softmax_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 0, 1, 2, 2, 2])
    assert torch.autograd.gradcheck(lambda a: edge_softmax(a, target, 3), logits)
    assert torch.autograd.gradgradcheck(lambda a: edge_softmax(a, target, 3), logits)


def test_softmax_survives_huge_logits() -> None:
    logits = torch.tensor([[1e4], [-1e4], [3e38]])
    weights = edge_softmax(logits, torch.tensor([0, 0, 1]), 2)
    assert weights.flatten().tolist() == [1.0, 0.0, 1.0]


def test_low_precision_is_summed_in_float32() -> None:
    messages = torch.ones(1000, 1, dtype=torch.bfloat16)
    total = scatter_sum(messages, torch.zeros(1000, dtype=torch.long), 1)
    assert total.dtype == torch.float32
    assert total.item() == 1000.0
