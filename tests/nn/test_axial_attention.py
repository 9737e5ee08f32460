"""Attention from one direction equals the spherical attention of the features at all points."""

from __future__ import annotations

import pytest
import torch

from est_ocp.nn import AxialAttention, SphericalAttention
from est_ocp.sphere import make_rule, spherical_harmonics

WIDTH, EDGES = 6, 4


def make(rule, lmax: int, num_heads: int, flags: dict) -> AxialAttention:
    torch.manual_seed(0)
    attention = AxialAttention(WIDTH, lmax, rule, num_heads, **flags).double()
    for parameter in attention.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    return attention


def by_rows(
    attention: AxialAttention, rule, x: torch.Tensor, radial: torch.Tensor, edge_sh: torch.Tensor
) -> torch.Tensor:
    """Result [E, S, D] at the points, without its mean over channels."""
    probes, coefficients, constant = attention.vectors(radial)
    harmonics = spherical_harmonics(rule.points, attention.lmax)
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1).sum(dim=1)
    factor = attention.query_norm.inverse_deviation(variance)[:, None, None]
    factors = torch.einsum("ekd,eid,si->eks", probes, centred, harmonics)
    factors = factor * factors + probes.sum(dim=-1, keepdim=True)
    added = -rule.num_points % 4
    factors = torch.nn.functional.pad(factors, (0, added), value=3.0)
    functions = attention.functions(factors, edge_sh)[..., : rule.num_points]
    return constant + torch.einsum("eks,ekd->esd", functions, coefficients)


def at_points(
    attention: AxialAttention, rule, x: torch.Tensor, radial: torch.Tensor, edge_sh: torch.Tensor
) -> torch.Tensor:
    """The same of :class:`SphericalAttention`'s equations."""
    values = spherical_harmonics(rule.points, attention.lmax)
    degrees = range(attention.lmax + 1)
    e = torch.cat(
        [edge_sh[:, d * d : (d + 1) ** 2, None] * radial[:, d, None] for d in degrees], dim=1
    )

    def normalise(norm, coefficients: torch.Tensor) -> torch.Tensor:
        f = torch.einsum("si,eid->esd", values, coefficients)
        f = f - f.mean(dim=-1, keepdim=True)
        variance = torch.einsum("s,esd->e", rule.weights, f.square()) / WIDTH
        return f * norm.inverse_deviation(variance)[:, None, None] * norm.weight + norm.bias

    def split(f: torch.Tensor) -> torch.Tensor:
        return f.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    context = normalise(attention.context_norm, e)
    q = split(attention.query(normalise(attention.query_norm, x)))
    k, v = split(attention.key(context)), split(attention.value(context))
    size = rule.num_points
    bias = attention.point_bias[:size, :size]
    weights = torch.softmax(attention.scale * q @ k.mT + bias, dim=-1)
    out = attention.out((weights @ v).transpose(1, 2).flatten(2))
    return out - out.mean(dim=-1, keepdim=True)


@pytest.mark.parametrize("flags", [{}, {"relative_orientation": False, "quadrature": False}])
@pytest.mark.parametrize(
    ("lmax", "rule", "num_heads"),
    [(2, ("lebedev", 26), 1), (1, ("lebedev", 14), 3), (2, ("product", (6, 7)), 2)],
)
def test_equals_attention_at_points_with_gradients(lmax, rule, num_heads, flags):
    rule = make_rule(*rule)
    attention = make(rule, lmax, num_heads, flags)
    generator = torch.Generator().manual_seed(1)
    sizes = (EDGES, (lmax + 1) ** 2, WIDTH), (EDGES, lmax + 1, WIDTH), (EDGES, 3)
    inputs = [torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    x, radial, vectors = inputs
    edge_sh = spherical_harmonics(vectors / vectors.norm(dim=1, keepdim=True), lmax)
    mine = by_rows(attention, rule, x, radial, edge_sh)
    expected = at_points(attention, rule, x, radial, edge_sh)
    assert expected.std() > 1e-2
    torch.testing.assert_close(mine, expected, atol=1e-12, rtol=0)
    weights = torch.linspace(-1.0, 2.0, mine.numel(), dtype=torch.float64).view_as(mine)
    leaves = [*inputs, *attention.parameters()]
    for found, wanted in zip(
        torch.autograd.grad((mine * weights).sum(), leaves, retain_graph=True),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, atol=1e-11, rtol=1e-9)


def test_its_constants_are_those_of_spherical_attention():
    rule = make_rule("lebedev", 26)
    attention = make(rule, 2, 2, {})
    plain = SphericalAttention(WIDTH, rule, 2).double()
    torch.testing.assert_close(attention.point_bias[:26, :26], plain.point_bias)
    assert (attention.point_bias[:26, 26:] == -torch.inf).all()
