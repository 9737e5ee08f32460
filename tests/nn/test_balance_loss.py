from __future__ import annotations

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.nn.balance_loss import expert_usage, load_balance_loss
from est_ocp.nn.expert_gate import keep_top_k


def probabilities(num_nodes=12, num_experts=4, top_k=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_nodes, num_experts, generator=generator, dtype=torch.float64)
    dense = torch.softmax(logits, dim=1)
    return dense if top_k is None else keep_top_k(dense, top_k)


@pytest.mark.parametrize("num_experts", [2, 5])
def test_zero_at_uniform_use_and_largest_when_one_expert_has_all(num_experts):
    uniform = torch.full((6, num_experts), 1 / num_experts, dtype=torch.float64)
    assert load_balance_loss(uniform).abs() < 1e-14
    one = torch.zeros(6, num_experts, dtype=torch.float64)
    one[:, 1] = 1.0
    assert load_balance_loss(one).item() == pytest.approx(num_experts - 1)


def test_dense_loss_is_the_squared_coefficient_of_variation():
    p = probabilities()
    mean = p.mean(dim=0)
    expected = mean.var(correction=0) / mean.mean() ** 2
    torch.testing.assert_close(load_balance_loss(p), expected)


def test_top_k_loss_counts_choices():
    p = torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.0, 0.5]])
    share = torch.tensor([0.5, 0.25, 0.25])
    mean = torch.tensor([0.625, 0.125, 0.25])
    torch.testing.assert_close(load_balance_loss(p, top_k=2), 3 * (share * mean).sum() - 1)


def test_opposite_decided_nodes_are_balanced():
    """Balance is about the sum over nodes: each node may still be decided."""
    p = torch.eye(4, dtype=torch.float64)
    assert load_balance_loss(p).abs() < 1e-14


@pytest.mark.parametrize("top_k", [None, 2])
def test_order_of_nodes_and_names_of_experts_do_not_matter(top_k):
    p = probabilities(top_k=top_k)
    loss = load_balance_loss(p, top_k)
    generator = torch.Generator().manual_seed(1)
    nodes, experts = torch.randperm(12, generator=generator), torch.randperm(4, generator=generator)
    torch.testing.assert_close(load_balance_loss(p[nodes], top_k), loss)
    torch.testing.assert_close(load_balance_loss(p[:, experts], top_k), loss)
    torch.testing.assert_close(load_balance_loss(torch.cat((p, p)), top_k), loss)


@pytest.mark.parametrize("top_k", [None, 2])
def test_per_graph_equals_each_graph_alone(top_k):
    p = probabilities(top_k=top_k)
    batch = torch.tensor([0, 2, 0, 2, 2, 0, 0, 0, 2, 2, 2, 3])
    losses = load_balance_loss(p, top_k, batch, 4)
    for graph in (0, 2, 3):
        torch.testing.assert_close(losses[graph], load_balance_loss(p[batch == graph], top_k))
    assert losses[1] == 0


def test_no_nodes_cost_nothing():
    empty = torch.zeros(0, 4, requires_grad=True)
    loss = load_balance_loss(empty)
    assert loss == 0
    loss.backward()


@pytest.mark.parametrize("top_k", [None, 2])
def test_descent_evens_out_the_use(top_k):
    generator = torch.Generator().manual_seed(0)
    offset = torch.tensor([2.0, 0.0, -1.0, -2.0])
    logits = (torch.randn(40, 4, generator=generator) + offset).requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.1)
    first = None
    for _ in range(100):
        p = torch.softmax(logits, dim=1)
        loss = load_balance_loss(p if top_k is None else keep_top_k(p, top_k), top_k)
        first = loss.item() if first is None else first
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.2 * first


def test_gradcheck():
    p = probabilities(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(load_balance_loss, (p,))


def test_batch_needs_the_number_of_graphs():
    with pytest.raises(ConfigError, match="num_graphs"):
        load_balance_loss(probabilities(), batch=torch.zeros(12, dtype=torch.long))


def test_usage_statistics():
    even = expert_usage(torch.full((5, 4), 0.25))
    assert even["usage_entropy"].item() == pytest.approx(1.0)
    assert even["gate_entropy"].item() == pytest.approx(1.0)
    decided = expert_usage(torch.eye(4))
    assert decided["usage_entropy"].item() == pytest.approx(1.0)
    assert decided["gate_entropy"].item() == pytest.approx(0.0)
    collapsed = expert_usage(torch.eye(4)[:1].expand(5, 4))
    assert collapsed["usage_entropy"].item() == pytest.approx(0.0)
    torch.testing.assert_close(collapsed["mean_usage"], torch.eye(4)[0])
    assert not expert_usage(probabilities().requires_grad_())["mean_usage"].requires_grad


def test_a_collapsed_top_k_gate_is_pulled_apart():
    """All nodes choose the same two experts; descent must raise the others' logits."""
    logits = torch.tensor([[2.0, 1.5, 0.0, -0.5]], dtype=torch.float64).repeat(6, 1)
    logits.requires_grad_(True)
    load_balance_loss(logits.softmax(-1), top_k=2).backward()
    gradient = logits.grad.sum(0)
    assert (gradient[:2] > 0).all()
    assert (gradient[2:] < 0).all()
