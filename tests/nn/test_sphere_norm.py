from __future__ import annotations

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.nn.sphere_norm import SphereNorm, spatial_norm
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
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(f.bfloat16()).dtype == torch.float32


def test_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="unknown norm 'batch'"):
        spatial_norm("batch", 6, make_rule("lebedev", 26))
