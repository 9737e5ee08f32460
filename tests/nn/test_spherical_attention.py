from __future__ import annotations

import math

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.nn import spherical_attention
from est_ocp.nn.spherical_attention import SphericalAttention, tf32_products
from est_ocp.sphere import make_rule
from tests.tolerances import BATCH, TOL


def naive_attention(module, rule, f, context=None):
    """Attention as the paper writes it: points appended to q and k, softmax as an integral."""
    context = f if context is None else context
    d = module.head_channels
    w_q, w_k, w_v = module.qkv.weight.chunk(3)
    normed_f, normed_context = module.norm(f), module.norm(context)
    out = torch.empty_like(f)
    for n in range(len(f)):
        for h in range(module.num_heads):
            part = slice(h * d, (h + 1) * d)
            q, k, v = (
                normed_f[n] @ w_q[part].T,
                normed_context[n] @ w_k[part].T,
                normed_context[n] @ w_v[part].T,
            )
            if module.relative_orientation:
                q, k = torch.cat((q, rule.points), 1), torch.cat((k, rule.points), 1)
            density = torch.exp(q @ k.T / math.sqrt(d))
            if module.quadrature:
                density = density * rule.weights
            out[n, :, part] = (density @ v) / density.sum(dim=1, keepdim=True)
    return out @ module.out.weight.T + module.out.bias


def make(rule, **options):
    torch.manual_seed(0)
    module = SphericalAttention(8, rule, **options).double()
    torch.nn.init.normal_(module.out.bias)
    torch.nn.init.normal_(module.norm.weight, mean=1.0, std=0.2)
    torch.nn.init.normal_(module.norm.bias)
    return module


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("quadrature", [True, False])
@pytest.mark.parametrize("relative_orientation", [True, False])
@pytest.mark.parametrize("num_heads", [1, 2])
def test_equals_concatenation_with_weighted_softmax(
    fused, quadrature, relative_orientation, num_heads
):
    rule = make_rule("product", (5, 7))
    module = make(
        rule,
        num_heads=num_heads,
        relative_orientation=relative_orientation,
        quadrature=quadrature,
        fused=fused,
    )
    f, context = torch.randn(2, 3, 35, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(module(f), naive_attention(module, rule, f), rtol=0, atol=1e-12)
        torch.testing.assert_close(
            module(f, context), naive_attention(module, rule, f, context), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("num_heads", [1, 2])
def test_batched_products_equal_the_reference(monkeypatch, num_heads):
    """Chosen on GPUs where TF32 is allowed; here by force, in float64."""
    rule = make_rule("product", (5, 7))
    module = make(rule, num_heads=num_heads)
    f = torch.randn(2, 35, 8, dtype=torch.float64)
    assert not tf32_products(f.float())
    expected = naive_attention(module, rule, f)
    monkeypatch.setattr(spherical_attention, "tf32_products", lambda q: True)
    called = []
    monkeypatch.setattr(
        module,
        "_attend_by_products",
        lambda *qkv: called.append(1) or SphericalAttention._attend_by_products(module, *qkv),
    )
    torch.testing.assert_close(module(f), expected, rtol=0, atol=1e-12)
    assert called


def test_context_equal_to_input_is_self_attention():
    module = make(make_rule("lebedev", 26))
    f = torch.randn(3, 26, 8, dtype=torch.float64)
    torch.testing.assert_close(module(f, f), module(f), rtol=0, atol=1e-12)


def test_quadrature_adds_nothing_for_equal_weights_but_does_for_unequal_ones():
    f = torch.randn(2, 26, 8, dtype=torch.float64)
    equal, unequal = make_rule("fibonacci", 26), make_rule("lebedev", 26)
    torch.testing.assert_close(
        make(equal, quadrature=True)(f), make(equal, quadrature=False)(f), rtol=0, atol=0
    )
    difference = make(unequal, quadrature=True)(f) - make(unequal, quadrature=False)(f)
    assert difference.abs().max() > 1e-4


def test_constant_function_stays_constant():
    """The mean of a constant is that constant, whatever the points: no rule may break it."""
    module = make(make_rule("product", (5, 7)))
    f = torch.randn(2, 1, 8, dtype=torch.float64).expand(2, 35, 8)
    y = module(f)
    torch.testing.assert_close(y, y[:, :1].expand_as(y), rtol=0, atol=TOL[torch.float64])


def test_order_of_points_is_irrelevant():
    """Points and features permuted together give the permuted result."""
    rule = make_rule("lebedev", 26)
    order = torch.randperm(26, generator=torch.Generator().manual_seed(1))
    permuted = type(rule)("permuted", rule.points[order], rule.weights[order], rule.degree)
    f = torch.randn(2, 26, 8, dtype=torch.float64)
    torch.testing.assert_close(
        make(permuted)(f[:, order]), make(rule)(f)[:, order], rtol=0, atol=1e-12
    )


def test_orientation_embedding_favours_near_points():
    """Without features to compare, a point listens most to itself and least to its antipode."""
    rule = make_rule("lebedev", 26)
    module = make(rule, quadrature=False)
    assert (module.point_bias.argmax(dim=1) == torch.arange(26)).all()
    antipode = (rule.points @ rule.points.T).argmin(dim=1)
    assert (module.point_bias.argmin(dim=1) == antipode).all()


@pytest.mark.parametrize("fused", [True, False])
def test_gradcheck(fused):
    module = make(make_rule("fibonacci", 6), num_heads=2, fused=fused)
    f = torch.randn(1, 6, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (f,))


def test_explicit_attention_has_second_derivatives():
    module = make(make_rule("fibonacci", 4), fused=False)
    f = torch.randn(1, 4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(module, (f,))


def test_every_parameter_gets_a_gradient():
    module = make(make_rule("lebedev", 26))
    (module(torch.randn(3, 26, 8, dtype=torch.float64)) ** 2).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-8, name


@pytest.mark.parametrize("fused", [True, False])
def test_nodes_are_independent_and_none_is_fine(fused):
    module = SphericalAttention(8, make_rule("lebedev", 26), fused=fused)
    f = torch.randn(5, 26, 8)
    alone = torch.cat([module(f[n : n + 1]) for n in range(5)])
    torch.testing.assert_close(module(f), alone, rtol=0, atol=BATCH[torch.float32])
    empty = module(f[:0])
    assert empty.shape == (0, 26, 8)
    empty.sum().backward()


@pytest.mark.parametrize("fused", [True, False])
def test_autocast_stays_close_and_keeps_the_bias_precise(fused):
    torch.manual_seed(0)
    module = SphericalAttention(8, make_rule("lebedev", 26), fused=fused)
    f = torch.randn(5, 26, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = module(f)
    assert module.point_bias.dtype == torch.float32
    torch.testing.assert_close(low.float(), module(f), rtol=0, atol=TOL[torch.bfloat16])


def test_large_logits_stay_finite():
    module = SphericalAttention(8, make_rule("lebedev", 26))
    with torch.no_grad():
        module.qkv.weight.mul_(1e3)
    assert module(torch.randn(2, 26, 8)).isfinite().all()


def test_heads_must_divide_channels():
    with pytest.raises(ConfigError, match="num_heads = 3"):
        SphericalAttention(8, make_rule("lebedev", 26), num_heads=3)


def test_parameter_count():
    module = SphericalAttention(128, make_rule("lebedev", 26))
    assert sum(p.numel() for p in module.parameters()) == 4 * 128**2 + 3 * 128
