"""EquiformerV2's message block."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.nn.edge_frame import EdgeFrame
from tests.nn.message_graph import make_attention, make_graph
from tests.nn.rotations import random_rotation, rotate
from tests.tolerances import TOL


def rotation_error(num_points: int) -> float:
    graph = make_graph(lmax=4)
    attention = make_attention(graph, num_points)
    rotation = random_rotation()
    out = attention(*graph.arguments())
    turned = attention(*graph.rotated(rotation).arguments())
    difference = turned - rotate(out, rotation, graph.lmax)
    return (difference.norm() / out.norm()).item()


@torch.no_grad()
def test_error_of_equivariance_falls_with_the_degree_of_the_rule() -> None:
    errors = [rotation_error(num_points) for num_points in (50, 110, 194, 434)]
    assert errors[0] < 3e-2
    for coarse, fine in pairwise(errors):
        assert fine < coarse / 3
    assert errors[-1] < 1e-6


@torch.no_grad()
def test_vector_output_is_the_slice_of_the_full_output() -> None:
    graph = make_graph(lmax=4)
    full, part = (
        make_attention(graph, out_channels=1, **degrees)
        for degrees in ({}, {"lmin_out": 1, "lmax_out": 1, "out_bias": False})
    )
    state = full.state_dict()
    width = 4
    wanted = {
        "second_convolution.scalar_linear.weight": slice(width, 2 * width),
        "second_convolution.scalar_linear.bias": slice(width, 2 * width),
        "projection.weight": slice(1, 2),
    }
    for name, rows in wanted.items():
        state[name] = state[name][rows]
    name = "second_convolution.pair_linears.0.weight"
    state[name] = state[name].unflatten(0, (2, graph.lmax, width))[:, 0].flatten(0, 1)
    del state["projection.bias"], state["second_convolution.pair_linears.1.weight"]
    part.load_state_dict(state)
    torch.testing.assert_close(part(*graph.arguments()), full(*graph.arguments())[:, 1:4])


@pytest.mark.parametrize(
    "degrees", [{}, {"lmax_out": 1}, {"lmin_out": 1, "lmax_out": 1, "out_bias": False}]
)
def test_every_parameter_contributes(degrees: dict) -> None:
    graph = make_graph(lmax=4)
    attention = make_attention(graph, **degrees)
    attention(*graph.arguments()).sum(dim=(0, 1)).square().sum().backward()
    for name, parameter in attention.named_parameters():
        gradient = parameter.grad
        if "embedding" in name:
            gradient = gradient[graph.atomic_numbers[:-1]]
        assert (gradient != 0).float().mean() > 0.9, name


def test_gradients_agree_with_differences() -> None:
    graph = make_graph(nodes=3, edges=4, channels=2, lmax=2, mmax=1)
    attention = make_attention(graph, num_points=26, out_channels=1)

    def energy(x: torch.Tensor, edge_vec: torch.Tensor) -> torch.Tensor:
        moved = replace(graph, x=x, edge_vec=edge_vec)
        return attention(*moved.arguments()).square().sum()

    inputs = (graph.x.requires_grad_(), graph.edge_vec.requires_grad_())
    assert torch.autograd.gradcheck(energy, inputs)
    # Training on conservative forces differentiates twice.
    assert torch.autograd.gradgradcheck(energy, inputs)


@torch.no_grad()
def test_order_of_edges_and_nodes_does_not_matter() -> None:
    graph = make_graph()
    attention = make_attention(graph)
    out = attention(*graph.arguments())
    order = torch.randperm(graph.edge_index.shape[1])
    shuffled = replace(graph, edge_index=graph.edge_index[:, order], edge_vec=graph.edge_vec[order])
    assert (attention(*shuffled.arguments()) - out).abs().max() < TOL[torch.float64]
    nodes = torch.randperm(len(graph.x))
    renumbered = replace(
        graph,
        x=graph.x[nodes],
        atomic_numbers=graph.atomic_numbers[nodes],
        edge_index=nodes.argsort()[graph.edge_index],
    )
    assert (attention(*renumbered.arguments()) - out[nodes]).abs().max() < TOL[torch.float64]


def test_nodes_without_edges_get_the_bias() -> None:
    graph = make_graph()
    attention = make_attention(graph)
    empty = replace(graph, edge_index=graph.edge_index[:, :0], edge_vec=graph.edge_vec[:0])
    single = replace(empty, x=graph.x[:1], atomic_numbers=graph.atomic_numbers[:1])
    bias = attention.projection.bias
    with torch.no_grad():
        torch.testing.assert_close(attention(*graph.arguments())[-1, 0], bias)
    for case in (empty, single):
        out = attention(*case.arguments())
        torch.testing.assert_close(out[:, 0], bias.expand(len(case.x), -1))
        assert (out[:, 1:] == 0).all()
        out.sum().backward()
    for parameter in attention.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_edges_along_the_axis_give_finite_gradients() -> None:
    graph = make_graph(dtype=torch.float32)
    edge_vec = torch.zeros_like(graph.edge_vec)
    edge_vec[0::2, 1], edge_vec[1::2, 1] = 1.5, -2.0
    edge_vec[2, 0] = 1e-7
    edge_vec[3, 2] = -1e-7
    edge_vec.requires_grad_()
    out = make_attention(graph)(*replace(graph, edge_vec=edge_vec).arguments())
    (gradient,) = torch.autograd.grad(out.square().sum(), edge_vec)
    assert torch.isfinite(out).all()
    assert torch.isfinite(gradient).all()


@torch.no_grad()
def test_training_equals_evaluation_without_dropout() -> None:
    graph = make_graph()
    attention = make_attention(graph, alpha_drop=0.5)
    evaluated = attention.eval()(*graph.arguments())
    torch.manual_seed(0)
    assert (attention.train()(*graph.arguments()) - evaluated).abs().max() > 1e-3
    undropped = make_attention(graph).train()(*graph.arguments())
    assert torch.equal(undropped, evaluated)


@torch.no_grad()
def test_bfloat16_autocast_stays_close() -> None:
    graph = make_graph(nodes=6, edges=40, lmax=4, dtype=torch.float32)
    attention = make_attention(graph)
    exact = attention(*graph.arguments())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = attention(*graph.arguments())
    assert torch.isfinite(rounded).all()
    assert (rounded - exact).abs().max() < TOL[torch.bfloat16] * exact.abs().max()


def test_constants_are_exact_after_a_life_in_float32() -> None:
    graph = make_graph()
    attention = make_attention(graph)
    late = copy.deepcopy(attention).float().double()
    late.load_state_dict(attention.state_dict())
    assert torch.equal(late(*graph.arguments()), attention(*graph.arguments()))
    assert set(attention.state_dict()) == {name for name, _ in attention.named_parameters()}


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_as_one_graph(autocast: bool) -> None:
    graph = make_graph(dtype=torch.float32)
    attention = make_attention(graph)
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    arguments = graph.arguments()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.testing.assert_close(compiled(*arguments), attention(*arguments))


@torch.no_grad()
def test_roll_of_the_frame_matters_only_by_aliasing() -> None:
    graph = make_graph()
    attention = make_attention(graph, num_points=434)
    frame = EdgeFrame(graph.lmax, graph.mmax).double()
    roll = torch.linspace(0, 6, len(graph.edge_vec), dtype=torch.float64)
    *rest, wigner = graph.arguments()
    difference = attention(*rest, frame(graph.edge_vec, roll)) - attention(*rest, wigner)
    assert difference.abs().max() < 1e-6


def test_refuses_impossible_sizes() -> None:
    graph = make_graph()
    with pytest.raises(ConfigError, match="lmax=3"):
        make_attention(graph, lmax_out=4)
    with pytest.raises(ConfigError, match="channels"):
        make_attention(replace(graph, x=graph.x[..., :0]))
