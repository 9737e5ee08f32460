"""Equiformer's attention, both kinds of messages: symmetry, heads, empty graphs, precision."""

from __future__ import annotations

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.nn.equiformer import EquiformerAttention, IrrepsLayout
from tests.nn.equiformer.features import (
    IRREPS,
    NUM_NODES,
    attention,
    edges,
    flat,
    no_edges,
    rotated_edges,
)
from tests.nn.equiformer.original import rotate_flat
from tests.nn.rotations import random_rotation
from tests.tolerances import BF16_RELATIVE, TOL

KINDS = pytest.mark.parametrize("nonlinear", [True, False])
EXACT = {"atol": TOL[torch.float64], "rtol": 0}


@KINDS
@pytest.mark.parametrize("out", ["6x0e+4x1e+2x2e", "5x0e", "1x1e"])
@torch.no_grad()
def test_equivariance(nonlinear, out):
    layout = IrrepsLayout(out)
    module = attention(layout, nonlinear=nonlinear)
    x, graph, rotation = flat(IRREPS, NUM_NODES), edges(), random_rotation()
    before = module(x, *graph)
    assert before[:-1].std() > 1e-2
    after = module(rotate_flat(x, IRREPS, rotation), *rotated_edges(graph, rotation))
    torch.testing.assert_close(after, rotate_flat(before, layout, rotation), **EXACT)


@KINDS
def test_every_parameter_and_input_has_a_gradient(nonlinear):
    module = attention(nonlinear=nonlinear).train()
    x = flat(IRREPS, NUM_NODES).requires_grad_()
    edge_index, edge_sh, scalars = edges()
    edge_sh.requires_grad_()
    scalars.requires_grad_()
    out = module(x, edge_index, edge_sh, scalars)
    (out * flat(IRREPS, NUM_NODES, seed=9)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    for tensor in (x, edge_sh, scalars):
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().max() > 0


@KINDS
def test_numerical_gradient(nonlinear):
    module = attention(IrrepsLayout("1x0e+1x1e"), nonlinear=nonlinear)
    edge_index, edge_sh, scalars = edges()
    few = slice(0, 6)
    inputs = (flat(IRREPS, NUM_NODES), edge_sh[few].clone(), scalars[few].clone())
    for tensor in inputs:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, sh, s: module(x, edge_index[:, few], sh, s), inputs, fast_mode=True
    )


@KINDS
@torch.no_grad()
def test_nodes_without_edges_get_the_bias(nonlinear):
    module = attention(nonlinear=nonlinear)
    torch.nn.init.normal_(module.projection.bias)
    bias = torch.zeros(IRREPS.dim, dtype=torch.float64)
    bias[:6] = module.projection.bias
    x = flat(IRREPS, NUM_NODES)
    torch.testing.assert_close(module(x, *edges())[-1], bias, **EXACT)
    torch.testing.assert_close(module(x, *no_edges()), bias.expand(NUM_NODES, -1), **EXACT)


@KINDS
def test_no_edges_and_no_nodes_train(nonlinear):
    module = attention(nonlinear=nonlinear).train()
    module(flat(IRREPS, NUM_NODES), *no_edges()).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
    assert module(flat(IRREPS, 0), *no_edges()).shape == (0, IRREPS.dim)


@KINDS
@torch.no_grad()
def test_order_of_edges_and_nodes_does_not_matter(nonlinear):
    module = attention(nonlinear=nonlinear)
    x, (edge_index, edge_sh, scalars) = flat(IRREPS, NUM_NODES), edges()
    expected = module(x, edge_index, edge_sh, scalars)
    order = torch.randperm(len(scalars))
    shuffled = module(x, edge_index[:, order], edge_sh[order], scalars[order])
    torch.testing.assert_close(shuffled, expected, **EXACT)
    nodes = torch.randperm(NUM_NODES)
    renamed = module(x[nodes], torch.argsort(nodes)[edge_index], edge_sh, scalars)
    torch.testing.assert_close(renamed, expected[nodes], **EXACT)


@torch.no_grad()
def test_one_neighbour_has_weight_one():
    """With a single edge the softmax is 1, whatever the logits: alpha_dot has no effect."""
    module = attention()
    edge_index, edge_sh, scalars = edges()
    graph = (edge_index[:, :1], edge_sh[:1], scalars[:1])
    x = flat(IRREPS, NUM_NODES)
    before = module(x, *graph)
    module.alpha_dot.mul_(-3)
    torch.testing.assert_close(module(x, *graph), before, **EXACT)
    assert not torch.allclose(module(x, *edges()), attention()(x, *edges()))


@torch.no_grad()
def test_rescaling_multiplies_by_the_number_of_neighbours():
    plain, rescaled = attention(), attention(rescale_degree=True)
    x, graph = flat(IRREPS, NUM_NODES), edges()
    torch.testing.assert_close(rescaled(x, *graph), 5 * plain(x, *graph), **EXACT)


@torch.no_grad()
def test_linear_messages_by_the_definition():
    """Every head reads its own slice of one tensor product, logit channels first."""
    module = attention(nonlinear=False)
    x, (edge_index, edge_sh, scalars) = flat(IRREPS, NUM_NODES), edges()
    source, target = edge_index
    summed = [
        a[source] + b[target]
        for a, b in zip(
            module.source_linear(IRREPS.split(x)),
            module.target_linear(IRREPS.split(x)),
            strict=True,
        )
    ]
    message = module.message
    out = message.linear(message.product(summed, edge_sh, message.radial(scalars)))
    alpha, values = message(summed, edge_sh, scalars)
    for head in range(3):
        of_head = out[0][:, 0, 8 * head : 8 * head + 8]
        torch.testing.assert_close(alpha[:, 4 * head : 4 * head + 4], of_head[:, :4])
        torch.testing.assert_close(values[0][:, 0, 4 * head : 4 * head + 4], of_head[:, 4:])
    torch.testing.assert_close(values[1], out[1])
    assert [v.shape[2] for v in values] == [12, 6, 3]


def test_dropout_only_in_training():
    module = attention(alpha_drop=0.5)
    x, graph = flat(IRREPS, NUM_NODES), edges()
    assert torch.equal(module(x, *graph), module(x, *graph))
    module.train()
    torch.manual_seed(0)
    assert not torch.equal(module(x, *graph), module(x, *graph))


@KINDS
@torch.no_grad()
def test_bf16_autocast_stays_close(nonlinear):
    module = attention(nonlinear=nonlinear).float()
    x = flat(IRREPS, NUM_NODES).float()
    edge_index, edge_sh, scalars = edges()
    graph = (edge_index, edge_sh.float(), scalars.float())
    expected = module(x, *graph)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x, *graph).float()
    assert (out - expected).norm() < BF16_RELATIVE * expected.norm()


@KINDS
def test_compiles_into_one_graph(nonlinear):
    module = attention(nonlinear=nonlinear)
    x, graph = flat(IRREPS, NUM_NODES), edges()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, *graph), module(x, *graph), **EXACT)


def test_heads_without_scalars_or_degree_are_refused():
    def make(head: str, out: str) -> EquiformerAttention:
        hidden = IrrepsLayout("4x0e+2x1e")
        layouts = (hidden, IrrepsLayout(out), hidden, IrrepsLayout(head))
        return EquiformerAttention(*layouts, num_heads=2, lmax_sh=1, radial_channels=[4, 4])

    with pytest.raises(ConfigError, match="heads with scalars"):
        make("2x1e", "4x0e")
    with pytest.raises(ConfigError, match="cannot make degree 1"):
        make("4x0e", "4x0e+2x1e")
