"""Radial basis, radial profile, harmonics and edge-degree embedding."""

from __future__ import annotations

import math

import pytest
import torch
from e3nn import o3

from est_ocp.errors import ConfigError
from est_ocp.nn.equiformer import (
    IrrepsEdgeDegree,
    IrrepsLayout,
    LearnableGaussianBasis,
    RadialProfile,
    edge_harmonics,
)
from tests.nn.equiformer.features import IRREPS, NUM_NODES, edges, flat, no_edges, rotated_edges
from tests.nn.equiformer.original import rotate_flat
from tests.nn.rotations import random_rotation
from tests.tolerances import TOL

EXACT = {"atol": TOL[torch.float64], "rtol": 0}


def test_basis_is_normal_densities():
    torch.manual_seed(0)
    basis = LearnableGaussianBasis(5.0, 16).double()
    distance = torch.linspace(0.5, 5.0, 7, dtype=torch.float64)
    expected = torch.distributions.Normal(basis.mean, basis.std.abs() + 1e-5).log_prob(
        distance[:, None] / 5.0
    )
    torch.testing.assert_close(basis(distance), expected.exp(), **EXACT)
    assert basis.mean.min() >= 0
    assert basis.mean.max() <= 1
    assert basis.std.min() >= 1 / 16
    basis(distance).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in basis.parameters())


def test_basis_stays_in_float32_under_autocast():
    basis = LearnableGaussianBasis(5.0, 16)
    distance = torch.linspace(0.5, 5.0, 7)
    expected = basis(distance)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(basis(distance), expected)


@pytest.mark.parametrize(("cutoff", "num_basis"), [(0.0, 4), (5.0, 0)])
def test_basis_of_nothing_is_refused(cutoff, num_basis):
    with pytest.raises(ConfigError, match="cutoff > 0"):
        LearnableGaussianBasis(cutoff, num_basis)


def test_radial_profile_starts_as_equiformers():
    torch.manual_seed(0)
    net = RadialProfile([8, 16, 16, 200]).net
    assert not net[0].bias.any()
    assert not net[3].bias.any()
    assert 0.9 / math.sqrt(16) < net[6].bias.abs().max() <= 1 / math.sqrt(16)


def test_harmonics_are_e3nns_and_differentiable_on_the_axes():
    vec = torch.cat((flat(IrrepsLayout("1x1e"), 20), 2 * torch.eye(3, dtype=torch.float64)))
    vec.requires_grad_()
    harmonics = edge_harmonics(vec, vec.norm(dim=1), 3)
    expected = o3.spherical_harmonics([0, 1, 2, 3], vec, True, "component")
    torch.testing.assert_close(harmonics, expected, **EXACT)
    harmonics.sum().backward()
    assert torch.isfinite(vec.grad).all()


def embedding(lmax_sh: int = 2) -> IrrepsEdgeDegree:
    torch.manual_seed(0)
    return IrrepsEdgeDegree(IRREPS, lmax_sh, [5, 8, 8], avg_degree=4.0).double()


@torch.no_grad()
def test_edge_degree_is_equivariant_and_zero_alone():
    module, graph, rotation = embedding(), edges(), random_rotation()
    out = module(*graph, NUM_NODES)
    turned = module(*rotated_edges(graph, rotation), NUM_NODES)
    torch.testing.assert_close(turned, rotate_flat(out, IRREPS, rotation), **EXACT)
    assert out[:-1].std() > 1e-2
    # The projection's bias sits on edges: a node without any has nothing.
    assert not out[-1].any()
    assert not module(*no_edges(), NUM_NODES).any()


@torch.no_grad()
def test_edge_degree_is_a_sum_over_the_root_of_the_average():
    module = embedding()
    edge_index, edge_sh, scalars = edges()
    twice = (torch.cat((edge_index, edge_index), 1), edge_sh.repeat(2, 1), scalars.repeat(2, 1))
    once = module(edge_index, edge_sh, scalars, NUM_NODES)
    torch.testing.assert_close(module(*twice, NUM_NODES), 2 * once, **EXACT)
    module.factor = 1.0
    torch.testing.assert_close(module(edge_index, edge_sh, scalars, NUM_NODES), 2 * once, **EXACT)


def test_edge_degree_pads_degrees_without_harmonics():
    module = embedding(lmax_sh=1)
    out = module(*edges(1), NUM_NODES)
    assert out.shape == (NUM_NODES, IRREPS.dim)
    assert not out[:, -10:].any()
    (out * flat(IRREPS, NUM_NODES)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in module.parameters())
