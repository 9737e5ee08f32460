"""Rows of edges: norm and activation equal those of the feature at all points."""

from __future__ import annotations

import pytest
import torch

from est_ocp.nn import AxialAttention, CoefficientNorm, SphereNorm
from est_ocp.nn.edge_rows import EdgeRows
from est_ocp.sphere import SphericalTransform, make_rule, spherical_harmonics

WIDTH, HIDDEN, EDGES = 6, 5, 4


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize(
    ("lmax", "rule", "num_heads", "inverse"),
    [
        (2, ("lebedev", 26), 1, "quadrature"),
        (1, ("lebedev", 14), 2, "diagonal"),
        (2, ("product", (6, 7)), 3, "least_squares"),
    ],
)
def test_activation_equals_that_at_points_with_gradients(lmax, rule, num_heads, inverse):
    torch.manual_seed(0)
    rule = make_rule(*rule)
    transform = SphericalTransform(rule, lmax, inverse).double()
    attention = AxialAttention(WIDTH, lmax, rule, num_heads).double()
    edge_rows = EdgeRows(rule, transform, attention).double()
    norm = CoefficientNorm(WIDTH).double()
    plain_norm = SphereNorm(WIDTH, rule).double()
    generator = torch.Generator().manual_seed(1)
    coefficients, own_rows = (lmax + 1) ** 2, lmax * num_heads
    given = normal(generator, EDGES, 1 + coefficients + own_rows, WIDTH)
    probes = normal(generator, EDGES, own_rows, WIDTH)
    weight, bias = normal(generator, HIDDEN, WIDTH), normal(generator, HIDDEN)
    vectors = torch.nn.functional.normalize(normal(generator, EDGES, 3), dim=1)
    edge_sh = spherical_harmonics(vectors, lmax)

    centred = given - given.mean(dim=-1, keepdim=True)
    rows = torch.cat((centred, torch.ones_like(centred[:, :1])), dim=1)
    own, factor = edge_rows.attend(attention, norm, rows, probes, edge_sh)
    back = transform.from_points_matrix
    result = edge_rows.activate(rows, own, factor, weight, bias, back)

    harmonics = spherical_harmonics(rule.points, lmax)
    of_query, num_points = centred[:, 1 : 1 + coefficients] / (lmax + 1), rule.num_points
    variance = of_query.square().mean(dim=-1).sum(dim=1)
    deviation = torch.sqrt(variance + attention.query_norm.eps)[:, None, None]
    factors = torch.einsum("ekd,eid,si->eks", probes, of_query, harmonics) / deviation
    factors = factors + probes.sum(dim=-1, keepdim=True)
    factors = torch.nn.functional.pad(factors, (0, -num_points % 4))
    functions = attention.functions(factors, edge_sh)[..., :num_points]
    f = centred[:, :1] + torch.einsum("si,eid->esd", harmonics, of_query)
    f = f + torch.einsum("eks,ekd->esd", functions, centred[:, 1 + coefficients :])
    hidden = torch.nn.functional.silu(plain_norm(f) @ weight.T + bias)
    expected = transform.from_points(hidden)

    torch.testing.assert_close(own[..., :num_points], functions, atol=1e-12, rtol=0)
    torch.testing.assert_close(result, expected, atol=1e-12, rtol=0)
    weights = torch.linspace(-1.0, 2.0, result.numel(), dtype=torch.float64).view_as(result)
    leaves = [given, probes, weight, bias]
    for found, wanted in zip(
        torch.autograd.grad((result * weights).sum(), leaves, retain_graph=True),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, atol=1e-11, rtol=1e-9)


def test_no_kernel_without_a_gpu():
    rule = make_rule("lebedev", 26)
    transform, attention = SphericalTransform(rule, 2), AxialAttention(WIDTH, 2, rule)
    edge_rows = EdgeRows(rule, transform, attention)
    assert not edge_rows.can_fuse(torch.zeros(EDGES, 13, WIDTH))
