"""Stochastic depth and equivariant dropout."""

from __future__ import annotations

import torch

from est_ocp.nn.drop import EquivariantDropout, GraphDropPath


def test_drop_path_draws_once_a_graph_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = GraphDropPath(0.25)
    batch = torch.arange(20_000).repeat_interleave(2)
    x = torch.ones(40_000, 4, 1)
    out = drop(x, batch, 20_000)
    per_graph = out.reshape(20_000, -1)
    assert (per_graph == per_graph[:, :1]).all()
    torch.testing.assert_close(per_graph.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert abs(out.mean() - 1.0) < 0.02


def test_drop_path_keeps_the_draws_of_graphs_without_nodes_apart() -> None:
    drop = GraphDropPath(0.5)
    assert drop(torch.ones(2, 1, 1), torch.tensor([0, 3]), 5).shape == (2, 1, 1)


def test_dropout_zeroes_whole_channels() -> None:
    torch.manual_seed(0)
    drop = EquivariantDropout(0.3)
    out = drop(torch.ones(4000, 9, 8))
    assert (out == out[:, :1]).all()
    assert abs((out == 0).float().mean() - 0.3) < 0.02
    assert abs(out.mean() - 1.0) < 0.02


def test_evaluation_changes_nothing() -> None:
    x, batch = torch.randn(5, 4, 2), torch.zeros(5, dtype=torch.long)
    assert torch.equal(GraphDropPath(0.9).eval()(x, batch, 1), x)
    assert torch.equal(EquivariantDropout(0.9).eval()(x), x)
