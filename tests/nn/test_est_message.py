"""The EST message block: its equations, symmetries, cost and behaviour at the edges."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.nn.est_message import ESTMessageBlock
from est_ocp.sphere import make_rule
from tests.nn.est_message_graph import (
    CHANNELS,
    NUM_BASIS,
    SIZES,
    literal_messages,
    make_block,
    make_edges,
)
from tests.nn.rotations import random_rotation, rotate
from tests.tolerances import STRICT, TOL

VARIANTS = {
    "default": {},
    "heads": {"num_heads": 2},
    "explicit": {"fused_kernels": False},
    "explicit_heads": {"fused_kernels": False, "num_heads": 4},
    "top_k": {"top_k": 2},
    "one_expert": {"num_spherical_experts": 1, "num_steerable_experts": 0},
    "spherical_only": {"num_steerable_experts": 0},
    "least_squares": {"inverse": "least_squares"},
    "vectors": {"out_channels": 1, "lmin_out": 1, "lmax_out": 1},
}
BOTH = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())


@BOTH
def test_equals_its_equations(options):
    rule = make_rule("lebedev", 26)
    block, edges = make_block(rule, **options), make_edges()
    with torch.no_grad():
        result = block(*edges.arguments())
        expected = literal_messages(block, rule, edges)
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(result, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("lmax", "rule"), [(1, ("lebedev", 14)), (3, ("design", 48)), (2, ("product", (6, 7)))]
)
def test_equals_its_equations_for_other_degrees_and_points(lmax, rule):
    rule = make_rule(*rule)
    block, edges = make_block(rule, lmax), make_edges(lmax=lmax)
    with torch.no_grad():
        expected = literal_messages(block, rule, edges)
        torch.testing.assert_close(block(*edges.arguments()), expected, atol=1e-12, rtol=0)


@BOTH
def test_gradients_equal_those_of_its_equations(options):
    rule = make_rule("lebedev", 26)
    block, edges = make_block(rule, **options), make_edges()
    edges.x.requires_grad_()
    inputs = [edges.x, *block.parameters()]
    results = block(*edges.arguments()), literal_messages(block, rule, edges)
    weights = torch.linspace(0.5, 1.5, results[0].numel(), dtype=torch.float64)
    gradients = (
        torch.autograd.grad((y.flatten() * weights).sum(), inputs, allow_unused=True)
        for y in results
    )
    for mine, expected in zip(*gradients, strict=True):
        if expected is None:
            expected = torch.zeros_like(mine)
        torch.testing.assert_close(mine, expected, atol=1e-11, rtol=1e-9)


def rotation_error(points: int, seed: int = 1) -> float:
    block, edges = make_block(make_rule("lebedev", points)), make_edges()
    rotation = random_rotation(seed)
    with torch.no_grad():
        expected = rotate(block(*edges.arguments()), rotation, 2)
        turned = block(*edges.rotated(rotation).arguments())
    return float((turned - expected).norm() / expected.norm())


def test_rotation_error_falls_with_the_degree_of_the_rule():
    errors = [rotation_error(points) for points in (14, 26, 50, 86, 194)]
    assert all(3 * after < before for before, after in pairwise(errors))
    assert errors[0] < 0.1
    assert errors[-1] < 1e-6


def test_quarter_turns_that_map_the_points_to_themselves_are_exact():
    """Lebedev rules have the octahedron's symmetry."""
    block, edges = make_block(), make_edges()
    turn = torch.tensor([[0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    with torch.no_grad():
        expected = rotate(block(*edges.arguments()), turn, 2)
        turned = block(*edges.rotated(turn).arguments())
    torch.testing.assert_close(turned, expected, atol=STRICT, rtol=0)


def test_order_of_edges_and_nodes_does_not_matter():
    block, edges = make_block(), make_edges()
    order = torch.randperm(edges.edge_index.shape[1], generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        block(*edges.subset(order).arguments()), block(*edges.arguments()), atol=STRICT, rtol=0
    )
    nodes = torch.tensor([4, 2, 5, 0, 1, 3])
    x, edge_index, *rest = edges.arguments()
    renamed = block(x[nodes], torch.argsort(nodes)[edge_index], *rest)
    torch.testing.assert_close(renamed, block(*edges.arguments())[nodes], atol=STRICT, rtol=0)


@pytest.mark.parametrize("count", [0, 1, 16, 17])
def test_messages_add_up_whatever_their_number(count):
    """Edges do not see each other: two parts give the sum of the whole."""
    block, edges = make_block(), make_edges()
    parts = [block(*edges.subset(s).arguments()) for s in (slice(count), slice(count, None))]
    torch.testing.assert_close(sum(parts), block(*edges.arguments()), atol=STRICT, rtol=0)


def test_nodes_without_edges_receive_nothing():
    block, edges = make_block(), make_edges()
    assert not block(*edges.arguments())[-1].any()
    alone = block(*edges.subset(slice(0)).arguments())
    assert alone.shape == (6, 9, CHANNELS)
    assert not alone.any()
    alone.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in block.parameters() if p.grad is not None)


def test_messages_fade_with_the_envelope():
    block, edges = make_block(), make_edges()
    x, edge_index, harmonics, scalars, envelope = edges.arguments()
    whole = block(x, edge_index, harmonics, scalars, envelope)
    faint = block(x, edge_index, harmonics, scalars, 1e-3 * envelope)
    torch.testing.assert_close(faint, 1e-3 * whole, atol=STRICT, rtol=0)


@BOTH
def test_every_parameter_gets_a_gradient(options):
    block, edges = make_block(**options), make_edges()
    x, *rest = edges.arguments()
    x.requires_grad_()
    y = block(x, *rest)
    (y * torch.linspace(0.5, 1.5, y.numel()).view_as(y)).sum().backward()
    assert x.grad[:-1].abs().amax(dim=(1, 2)).min() > 0
    # Vectors are all that is left of the output: what makes its scalars alone is idle.
    of_scalars = {"spherical.bias_out", "steerable.bias_in", "steerable.bias_out"}
    idle = of_scalars if "lmin_out" in options else set()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.abs().max() > 1e-10) == (name not in idle), name


def test_derivatives_once_and_twice():
    torch.manual_seed(0)
    sizes = dict.fromkeys(("spherical_expert_channels", "steerable_expert_channels"), 2)
    rule = make_rule("lebedev", 6)
    index = torch.tensor([[0, 1], [1, 1]])
    envelope = torch.tensor([0.3, 0.7], dtype=torch.float64)
    tensors = [torch.randn(*shape, dtype=torch.float64) for shape in ((2, 4, 2), (2, 4), (2, 3))]
    inputs = tuple(t.requires_grad_() for t in tensors)
    for fused in (True, False):
        block = ESTMessageBlock(
            2, 1, rule, [3, 2], hidden_channels=2, fused_kernels=fused, **sizes
        ).double()

        def messages(x, harmonics, scalars, block=block):
            return block(x, index, harmonics, scalars, envelope)

        assert torch.autograd.gradcheck(messages, inputs)
    assert torch.autograd.gradgradcheck(messages, inputs, rtol=1e-2)


@BOTH
def test_bf16_autocast_stays_close(options):
    block, edges = make_block(dtype=torch.float32, **options), make_edges(dtype=torch.float32)
    exact = block(*edges.arguments())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = block(*edges.arguments())
    assert low.dtype == torch.float32
    assert (low - exact).norm() < TOL[torch.bfloat16] * exact.norm()


def test_compiles_to_one_graph_for_any_number_of_edges():
    torch.compiler.reset()
    block, edges = make_block(), make_edges()
    compiled = torch.compile(block, fullgraph=True, backend="eager", dynamic=True)
    for count in (21, 18):
        arguments = edges.subset(slice(count)).arguments()
        torch.testing.assert_close(compiled(*arguments), block(*arguments), atol=STRICT, rtol=0)


def test_one_tensor_of_all_points_and_hidden_channels_is_kept():
    """All else that the backward pass needs is smaller: what the memory of a layer rests on."""
    block, edges = make_block(spherical_expert_channels=40), make_edges()
    # Points are filled up to a multiple of four.
    largest = edges.edge_index.shape[1] * 28 * 2 * 40
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 8
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(*edges.arguments()).sum()
    assert [size for size in kept.values() if 2 * size > largest] == [largest]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_spherical_experts": 0}, "at least one spherical expert"),
        ({"num_heads": 3}, "does not divide the 8 channels of the EST message"),
        ({"num_steerable_experts": 0, "num_spherical_experts": 1, "top_k": 2}, "single expert"),
        ({"top_k": 7}, "cannot be used with 4 experts"),
        ({"lmax": 0}, "degrees of 1 or more"),
    ],
)
def test_impossible_options_are_named(options, message):
    lmax = options.pop("lmax", 2)
    with pytest.raises(ConfigError, match=message):
        ESTMessageBlock(CHANNELS, lmax, make_rule("lebedev", 26), [NUM_BASIS, 4], **SIZES | options)
