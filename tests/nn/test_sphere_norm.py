from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from est_ocp.errors import ConfigError
from est_ocp.nn.sphere_norm import SphereNorm, spatial_norm
from est_ocp.nn.spherical_attention import SphericalAttention
from est_ocp.sphere import SphericalTransform, make_rule
from tests.nn._rotation import rotation_error
from tests.tolerances import TOL


def test_mean_over_channels_is_zero_and_variance_over_the_sphere_one():
    torch.manual_seed(0)
    rule = make_rule("product", (5, 7))
    f = torch.randn(3, 35, 8, dtype=torch.float64) * 4 + 2
    y = SphereNorm(8, rule).double()(f)
    assert y.mean(dim=-1).abs().max() < TOL[torch.float64]
    variance = (rule.weights * y.square().mean(dim=-1)).sum(dim=1)
    torch.testing.assert_close(variance, torch.ones(3, dtype=torch.float64), rtol=1e-4, atol=0)


def test_equivariant_to_rounding_where_layer_norm_is_not():
    """On a rule that integrates products, only the point-wise divisor makes an error."""
    torch.manual_seed(0)
    transform = SphericalTransform(make_rule("lebedev", 50), 4).double()
    x = torch.randn(4, 25, 6, dtype=torch.float64)

    def error(norm):
        norm = norm.double()
        return rotation_error(lambda h: transform.from_points(norm(transform.to_points(h))), x, 4)

    assert error(spatial_norm("sphere", 6, transform.rule)) < 1e-10
    assert error(spatial_norm("point", 6, transform.rule)) > 1e-3


def test_affine_and_autocast():
    torch.manual_seed(0)
    norm = SphereNorm(6, make_rule("lebedev", 26))
    with torch.no_grad():
        norm.weight.fill_(2.0)
        norm.bias.fill_(0.5)
    f = torch.randn(3, 26, 6)
    plain = SphereNorm(6, make_rule("lebedev", 26))(f)
    torch.testing.assert_close(norm(f), 2.0 * plain + 0.5)


def half_and_float32() -> tuple[SphereNorm, torch.Tensor, torch.Tensor]:
    """A norm, a feature in bfloat16 and the same numbers in float32."""
    torch.manual_seed(0)
    norm = SphereNorm(6, make_rule("lebedev", 26))
    torch.nn.init.normal_(norm.weight, mean=1.0, std=0.2)
    half = (torch.randn(3, 26, 6) * 4 + 2).bfloat16()
    return norm, half.requires_grad_(), half.detach().float().requires_grad_()


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_float32_arithmetic_rounded_once(autocast):
    norm, half, precise = half_and_float32()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = norm(half)
    expected = norm(precise)
    assert torch.equal(out, expected.bfloat16())
    grad = torch.randn(3, 26, 6).bfloat16()
    mine = torch.autograd.grad(out, (half, norm.weight, norm.bias), grad)
    theirs = torch.autograd.grad(expected, (precise, norm.weight, norm.bias), grad.float())
    assert torch.equal(mine[0], theirs[0].bfloat16())
    for one, other in zip(mine[1:], theirs[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=TOL[torch.float32])


def test_half_precision_keeps_its_input_alone():
    norm, half, _ = half_and_float32()
    kept = []

    def pack(tensor):
        kept.append((tensor.dtype, tensor.numel()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = norm(half * 1.0)
    assert not [size for dtype, size in kept if dtype == torch.float32 and size == out.numel()]


def test_recomputation_nests_and_compiles_to_one_graph():
    norm, half, _ = half_and_float32()

    def nested(f):
        return checkpoint(norm, f, use_reentrant=False)

    compiled = torch.compile(norm, backend="aot_eager", dynamic=True, fullgraph=True)
    (expected,) = torch.autograd.grad(norm(half).float().square().sum(), half)
    for function in (nested, compiled):
        (grad,) = torch.autograd.grad(function(half).float().square().sum(), half)
        torch.testing.assert_close(grad, expected, rtol=0, atol=TOL[torch.bfloat16])


def test_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="unknown norm 'batch'"):
        spatial_norm("batch", 6, make_rule("lebedev", 26))


def test_without_norm_attention_sees_the_features_as_they_are():
    rule = make_rule("lebedev", 26)
    torch.manual_seed(0)
    without = SphericalAttention(6, rule, norm="none")
    assert not list(without.norm.parameters())
    with_norm = SphericalAttention(6, rule, norm="sphere")
    with_norm.load_state_dict(without.state_dict(), strict=False)
    f = torch.randn(3, 26, 6)
    torch.testing.assert_close(without(with_norm.norm(f)), with_norm(f))
    assert (without(f) - with_norm(f)).abs().max() > 1e-3
