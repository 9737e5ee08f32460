"""Message blocks with an envelope: edges fade out at the cutoff, also the only one of a node."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from est_ocp.nn import EdgeDegreeEmbedding, EdgeFrame, GaussianBasis, PolynomialEnvelope
from est_ocp.nn.equiformer import IrrepsEdgeDegree, IrrepsLayout, edge_harmonics
from est_ocp.nn.scatter import edge_softmax
from tests.nn.equiformer import features
from tests.nn.message_graph import NUM_BASIS, make_attention, make_graph
from tests.tolerances import TOL

CUTOFF = 5.0
EXACT = {"atol": TOL[torch.float64], "rtol": 0}

#: A message block on edges: (edge_index [2, E], vectors [E, 3], envelope [E] or None) -> [N, ...].
Block = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]

#: Node 0 has two neighbours, node 1 a single one, node 2 none.
EDGES = torch.tensor([[1, 2, 2], [0, 0, 1]])
VECTORS = torch.tensor([[0.4, 1.1, -0.6], [1.5, 0.2, 0.9], [-0.8, 1.0, 0.7]], dtype=torch.float64)


def equiformer_v2() -> Block:
    graph = make_graph(nodes=3)
    attention = make_attention(graph)
    basis = GaussianBasis(CUTOFF, NUM_BASIS).double()
    frame = EdgeFrame(graph.lmax, graph.mmax).double()

    def block(edge_index, vec, envelope):
        edges = (basis(vec.norm(dim=1)), edge_index, frame(vec))
        return attention(graph.x, graph.atomic_numbers, *edges, envelope=envelope)

    return block


def equiformer_v2_edge_degree() -> Block:
    torch.manual_seed(0)
    embedding = EdgeDegreeEmbedding(4, 3, 2, 90, 6, NUM_BASIS).double()
    basis = GaussianBasis(CUTOFF, NUM_BASIS).double()
    frame = EdgeFrame(3, 2).double()
    numbers = torch.tensor([8, 6, 1])

    def block(edge_index, vec, envelope):
        edges = (basis(vec.norm(dim=1)), edge_index, frame(vec))
        return embedding(numbers, *edges, 3, envelope=envelope)

    return block


def equiformer(**options) -> Block:
    attention = features.attention(**options)
    for name, parameter in attention.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    x = features.flat(features.IRREPS, 3)
    basis = GaussianBasis(CUTOFF, 5).double()

    def block(edge_index, vec, envelope):
        distance = vec.norm(dim=1)
        edge_sh = edge_harmonics(vec, distance, 2)
        return attention(x, edge_index, edge_sh, basis(distance), envelope)

    return block


def equiformer_edge_degree() -> Block:
    torch.manual_seed(0)
    embedding = IrrepsEdgeDegree(IrrepsLayout("6x0e+4x1e"), 1, [5, 8, 8], 4.0).double()
    torch.nn.init.normal_(embedding.projection.bias)
    basis = GaussianBasis(CUTOFF, 5).double()

    def block(edge_index, vec, envelope):
        distance = vec.norm(dim=1)
        edge_sh = edge_harmonics(vec, distance, 1)
        return embedding(edge_index, edge_sh, basis(distance), 3, envelope)

    return block


BLOCKS = {
    "v2": equiformer_v2,
    "v2-edge-degree": equiformer_v2_edge_degree,
    "nonlinear": equiformer,
    "linear": lambda: equiformer(nonlinear=False),
    "rescaled": lambda: equiformer(rescale_degree=True),
    "edge-degree": equiformer_edge_degree,
}
ALL = pytest.mark.parametrize("name", BLOCKS)


@ALL
@torch.no_grad()
def test_an_envelope_of_ones_changes_no_bit(name):
    block = BLOCKS[name]()
    ones = torch.ones(3, dtype=torch.float64)
    assert torch.equal(block(EDGES, VECTORS, ones), block(EDGES, VECTORS, None))


@ALL
@pytest.mark.parametrize("gone", [[0], [2], [0, 1], [0, 1, 2]])
@torch.no_grad()
def test_an_edge_whose_envelope_is_zero_is_no_edge(name, gone):
    """Neither in the sums nor in the softmax of the others; also the only one of its node."""
    block = BLOCKS[name]()
    envelope = torch.tensor([0.7, 0.4, 0.9], dtype=torch.float64)
    kept = [e for e in range(3) if e not in gone]
    without = block(EDGES[:, kept], VECTORS[kept], envelope[kept])
    assert (without - block(EDGES, VECTORS, envelope)).abs().max() > 1e-3
    envelope[gone] = 0.0
    torch.testing.assert_close(block(EDGES, VECTORS, envelope), without, **EXACT)


@ALL
@pytest.mark.parametrize("edge", [0, 2], ids=["one of two", "the only one"])
def test_a_neighbour_leaves_with_two_derivatives(name, edge):
    """At `step` before the cutoff the change is of order step^3 or higher, its slope step^2, ..."""
    block, fade = BLOCKS[name](), PolynomialEnvelope(CUTOFF)
    direction = VECTORS[edge] / VECTORS[edge].norm()
    probe = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def derivatives(step: float) -> torch.Tensor:
        distance = torch.tensor(CUTOFF - step, dtype=torch.float64, requires_grad=True)
        vec = torch.cat((VECTORS[:edge], (distance * direction)[None], VECTORS[edge + 1 :]))
        out = block(EDGES, vec, fade(vec.norm(dim=1))).flatten(1)
        value = (out.sin().sum(dim=1) * probe).sum()
        (first,) = torch.autograd.grad(value, distance, create_graph=True)
        (second,) = torch.autograd.grad(first, distance)
        return torch.stack((value.detach(), first.detach(), second))

    gone = derivatives(0.0)
    assert torch.isfinite(gone).all()
    assert gone[1:].abs().max() < 1e-12
    coarse, fine = (derivatives(step) - gone for step in (2e-2, 1e-2))
    assert coarse.abs().min() > 0
    for order in range(3):
        assert coarse[order] / fine[order] > 0.9 * 2 ** (3 - order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivatives_of_the_softmax_are_finite_however_faint_the_edges(dtype):
    envelope = torch.tensor([0.0, 1e-38, 1e-30, 1e-14, 1e-12, 0.0, 1e-13, 1.0], dtype=dtype)
    envelope.requires_grad_()
    logits = torch.linspace(-40, 40, 16, dtype=dtype).reshape(8, 2).requires_grad_()
    target = torch.tensor([0, 1, 2, 2, 2, 3, 4, 4])
    weights = edge_softmax(logits, target, 6, envelope)
    gradients = torch.autograd.grad(weights.square().sum(), (logits, envelope), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in gradients), (logits, envelope))
    for tensor in (weights, *gradients, *second):
        assert torch.isfinite(tensor).all()
    assert (weights <= envelope[:, None]).all()


def test_gradients_agree_with_differences():
    target = torch.tensor([0, 0, 0, 1, 2])
    envelope = torch.tensor([0.9, 0.02, 0.4, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    logits = torch.linspace(-2, 2, 10, dtype=torch.float64).reshape(5, 2).requires_grad_()

    def weights(logits, envelope):
        return edge_softmax(logits, target, 3, envelope)

    assert torch.autograd.gradcheck(weights, (logits, envelope))
    assert torch.autograd.gradgradcheck(weights, (logits, envelope))


@torch.no_grad()
def test_under_bfloat16_autocast_it_stays_close():
    graph = make_graph(nodes=6, edges=40, dtype=torch.float32)
    attention = make_attention(graph)
    embedding = EdgeDegreeEmbedding(4, graph.lmax, graph.mmax, 90, 6, NUM_BASIS)
    envelope = PolynomialEnvelope(CUTOFF)(graph.edge_vec.norm(dim=1))
    _, numbers, scalars, edge_index, wigner = graph.arguments()

    def both():
        degree = embedding(numbers, scalars, edge_index, wigner, 6, envelope=envelope)
        return attention(*graph.arguments(), envelope=envelope), degree

    exact = both()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = both()
    for mine, theirs in zip(rounded, exact, strict=True):
        assert (mine - theirs).abs().max() < TOL[torch.bfloat16] * theirs.abs().max()
