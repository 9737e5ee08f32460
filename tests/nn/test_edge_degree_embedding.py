"""First node features of all degrees."""

from __future__ import annotations

import pytest
import torch

from est_ocp.nn.coefficient_index import degree_of_coefficient, truncation_rescale
from est_ocp.nn.edge_degree_embedding import EdgeDegreeEmbedding
from est_ocp.sphere import spherical_harmonics
from tests.nn.message_graph import NUM_BASIS, MessageGraph, make_graph
from tests.nn.rotations import random_rotation, rotate
from tests.tolerances import TOL


def make(lmax: int, mmax: int) -> EdgeDegreeEmbedding:
    torch.manual_seed(0)
    return EdgeDegreeEmbedding(4, lmax, mmax, 90, 6, NUM_BASIS, rescale_factor=3.0).double()


def embed(embedding: EdgeDegreeEmbedding, graph: MessageGraph) -> torch.Tensor:
    _, *arguments = graph.arguments()
    return embedding(*arguments, len(graph.x))


@pytest.mark.parametrize(("lmax", "mmax"), [(4, 2), (3, 3), (2, 0)])
@torch.no_grad()
def test_is_a_sum_of_harmonics_of_the_edges(lmax: int, mmax: int) -> None:
    graph, embedding = make_graph(lmax=lmax, mmax=mmax), make(lmax, mmax)
    radial = embedding.radial(graph.scalars, graph.atomic_numbers, graph.edge_index)
    degrees = degree_of_coefficient(lmax)
    weights = radial.unflatten(1, (lmax + 1, 4))[:, degrees]
    directions = graph.edge_vec / graph.edge_vec.norm(dim=1, keepdim=True)
    harmonics = spherical_harmonics(directions, lmax) / torch.sqrt(2.0 * degrees.double() + 1)
    messages = weights * (harmonics * truncation_rescale(lmax, mmax)[degrees] / 3.0).unsqueeze(2)
    expected = torch.zeros_like(graph.x).index_add(0, graph.edge_index[1], messages)
    assert (embed(embedding, graph) - expected).abs().max() < TOL[torch.float64]


@torch.no_grad()
def test_is_equivariant() -> None:
    graph, embedding = make_graph(), make(3, 2)
    rotation = random_rotation()
    error = embed(embedding, graph.rotated(rotation)) - rotate(embed(embedding, graph), rotation, 3)
    assert error.abs().max() < TOL[torch.float64]


def test_default_divisor_is_the_average_degree_of_oc20() -> None:
    assert EdgeDegreeEmbedding(4, 2, 2, 90, 6, NUM_BASIS).rescale_factor == 23.395238876342773
