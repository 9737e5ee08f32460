"""Harmonics and Legendre recursions against e3nn and analytic values."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3
from scipy.special import eval_legendre

from est_ocp.sphere import make_rule, spherical_harmonics
from est_ocp.sphere.legendre import (
    design_energy,
    harmonics_by_degree,
    legendre_polynomials,
    measured_degree,
)
from tests.sphere.helpers import random_points

POLES = torch.tensor(
    [[0.0, 1, 0], [0, -1, 0], [1, 0, 0], [0, 0, -1]], dtype=torch.float64, device="cpu"
)


def test_recursion_equals_e3nn():
    points = torch.cat([random_points(40), POLES])
    ours = torch.cat(list(harmonics_by_degree(points, 11)), dim=-1)
    theirs = o3.spherical_harmonics(list(range(12)), points, True, normalization="component")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_component_normalisation_and_degree_one():
    points = random_points(20)
    values = spherical_harmonics(points, 14)
    for degree in range(15):
        block = values[:, degree**2 : (degree + 1) ** 2]
        square = block.square().sum(dim=-1)
        torch.testing.assert_close(
            square, torch.full_like(square, 2 * degree + 1), rtol=1e-12, atol=0
        )
    torch.testing.assert_close(values[:, 1:4], 3**0.5 * points, rtol=0, atol=1e-14)


@pytest.mark.parametrize("degree", [3, 13, 40])
def test_addition_theorem(degree):
    points = random_points(12)
    values = list(harmonics_by_degree(points, degree))[degree]
    expected = (2 * degree + 1) * legendre_polynomials(points @ points.T, degree)[..., degree]
    torch.testing.assert_close(values @ values.T, expected, rtol=0, atol=1e-10)


def test_legendre_polynomials_equal_scipy():
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)
    ours = legendre_polynomials(x, 25)
    for degree in range(26):
        theirs = torch.from_numpy(eval_legendre(degree, x.numpy()))
        torch.testing.assert_close(ours[:, degree], theirs, rtol=0, atol=1e-12)
    assert legendre_polynomials(x, 0).shape == (41, 1)


def test_recursion_is_differentiable_at_the_poles():
    points = POLES.clone().requires_grad_()
    torch.cat(list(harmonics_by_degree(points, 12)), dim=-1).square().sum().backward()
    assert torch.isfinite(points.grad).all()
    assert torch.autograd.gradcheck(
        lambda p: torch.cat(list(harmonics_by_degree(p, 4)), dim=-1), POLES.clone().requires_grad_()
    )


def test_design_energy_equals_its_legendre_form():
    rule = make_rule("fibonacci", 40)
    gram = legendre_polynomials(rule.points @ rule.points.T, 9)
    factor = 2 * torch.arange(10, dtype=torch.float64) + 1
    by_degree = factor * gram.sum(dim=(0, 1)) / 40**2
    energy = design_energy(rule.points, rule.weights, 9)
    assert energy == pytest.approx(by_degree[1:].sum().item(), rel=1e-9)


def test_measured_degree_of_platonic_solids():
    octahedron = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    assert measured_degree(octahedron, torch.full((6,), 1 / 6, dtype=torch.float64)) == 3
    tetrahedron = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).double()
    tetrahedron /= 3**0.5
    assert measured_degree(tetrahedron, torch.full((4,), 1 / 4, dtype=torch.float64)) == 2
    golden = (1 + 5**0.5) / 2
    signs = [(a, b) for a in (1, -1) for b in (1, -1)]
    icosahedron = torch.tensor(
        [p for a, b in signs for p in ((0, a, b * golden), (a, b * golden, 0), (b * golden, 0, a))],
        dtype=torch.float64,
    )
    icosahedron /= icosahedron.norm(dim=-1, keepdim=True)
    assert measured_degree(icosahedron, torch.full((12,), 1 / 12, dtype=torch.float64)) == 5
