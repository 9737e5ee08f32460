"""Transforms, their inverses and precision; the attention bias; constant buffers."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from e3nn import o3
from e3nn.o3 import FromS2Grid, ToS2Grid

from est_ocp.errors import ConfigError
from est_ocp.sphere import (
    ConstantBuffers,
    SphericalTransform,
    make_rule,
    sphere_attention_bias,
    spherical_harmonics,
)
from tests.sphere.helpers import random_points
from tests.tolerances import TOL

LMAX = 4


def coefficients(lmax: int = LMAX, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, (lmax + 1) ** 2, channels, dtype=torch.float64, generator=generator)


def round_trip(transform: SphericalTransform) -> float:
    transform = transform.double()
    x = coefficients(transform.lmax)
    return (transform.from_points(transform.to_points(x)) - x).abs().max().item()


@pytest.mark.parametrize(
    ("kind", "size", "inverse", "exact"),
    [
        ("lebedev", 50, "quadrature", True),
        ("lebedev", 38, "quadrature", True),
        ("lebedev", 110, "least_squares", True),
        ("lebedev", 110, "diagonal", False),
        ("design", 64, "quadrature", True),
        ("design", 128, "diagonal", True),
        ("product", (10, 9), "quadrature", True),
        ("product", (10, 9), "diagonal", False),
        ("fibonacci", 128, "quadrature", False),
        ("fibonacci", 128, "diagonal", False),
        ("fibonacci", 128, "least_squares", True),
        ("repulsion", 128, "quadrature", False),
    ],
)
def test_round_trip(kind, size, inverse, exact):
    transform = SphericalTransform(make_rule(kind, size), LMAX, inverse)
    assert transform.exact is exact
    error = round_trip(transform)
    if exact:
        assert error < TOL[torch.float64]
    else:
        assert error > 1e-4


@pytest.mark.parametrize("kind", ["lebedev", "fibonacci_poles"])
def test_mean_square_needs_no_points(kind):
    transform = SphericalTransform(make_rule(kind, 50), LMAX).double()
    x = coefficients()
    weights = make_rule(kind, 50).weights
    expected = (weights[:, None] * transform.to_points(x).square()).sum(dim=1)
    squares = (transform.square_matrix @ x).square()
    found = (transform.square_weights[:, None] * squares).sum(dim=1)
    assert (found - expected).abs().max() < 1e-12 * expected.max()


def test_paper_inverse_is_close_on_good_lattices():
    poles = SphericalTransform(make_rule("fibonacci_poles", 128), LMAX, "diagonal")
    half = SphericalTransform(make_rule("fibonacci", 128), LMAX, "diagonal")
    assert half.round_trip_error < 0.02 < poles.round_trip_error
    # each harmonic comes back with its own coefficient unchanged: eq. 12
    product = half.double().from_points_matrix @ half.to_points_matrix
    torch.testing.assert_close(
        product.diagonal(), torch.ones(25, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_values_and_rotation():
    rule = make_rule("lebedev", 86)
    transform = SphericalTransform(rule, LMAX).double()
    x = coefficients()
    values = transform.to_points(x)
    expected = torch.stack([spherical_harmonics(rule.points, LMAX) @ node for node in x])
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)
    # rotating the coefficients is looking at the function at rotated points
    rotation = o3.rand_matrix(dtype=torch.float64)
    sample = random_points(60)
    wigner = torch.linalg.lstsq(
        spherical_harmonics(sample, LMAX), spherical_harmonics(sample @ rotation, LMAX)
    ).solution
    turned = torch.stack([spherical_harmonics(rule.points @ rotation, LMAX) @ node for node in x])
    torch.testing.assert_close(transform.to_points(wigner @ x), turned, rtol=0, atol=1e-11)


def test_product_grid_reproduces_e3nn():
    size = (10, 15)
    transform = SphericalTransform(make_rule("product", size), LMAX).double()
    to_grid = ToS2Grid(LMAX, size, normalization="integral", dtype=torch.float64)
    from_grid = FromS2Grid(size, LMAX, normalization="integral", dtype=torch.float64)
    x = coefficients(channels=1)
    area = (4 * torch.pi) ** 0.5
    ours = transform.to_points(x).reshape(5, *size)
    torch.testing.assert_close(ours, area * to_grid(x[..., 0]), rtol=0, atol=1e-11)
    f = torch.randn(5, *size, dtype=torch.float64)
    ours = transform.from_points(f.reshape(5, -1, 1))[..., 0]
    # e3nn computes its weights in float32
    torch.testing.assert_close(ours, from_grid(f) / area, rtol=0, atol=1e-6)


@pytest.mark.parametrize("inverse", ["quadrature", "least_squares"])
def test_truncated_coefficients(inverse):
    kept = torch.tensor([d * d + d + m for d in range(5) for m in range(-d, d + 1) if abs(m) < 3])
    rule = make_rule("lebedev", 110)
    whole = SphericalTransform(rule, LMAX, inverse).double()
    part = SphericalTransform(rule, LMAX, inverse, coefficients=kept).double()
    x = coefficients()
    sparse = torch.zeros_like(x)
    sparse[:, kept] = x[:, kept]
    torch.testing.assert_close(part.to_points(x[:, kept]), whole.to_points(sparse))
    f = whole.to_points(x)
    torch.testing.assert_close(part.from_points(f), whole.from_points(f)[:, kept])
    assert part.exact
    assert part.num_coefficients == len(kept)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fibonacci", 24, LMAX, "quadrature"), "cannot carry"),
        (("fibonacci", 24, LMAX, "least_squares"), "cannot carry"),
        (("lebedev", 26, LMAX, "least_squares"), "do not determine"),
        (("fibonacci", 64, LMAX, "pinv"), "least_squares"),
    ],
)
def test_bad_transforms_are_refused(arguments, message):
    kind, size, lmax, inverse = arguments
    with pytest.raises(ConfigError, match=message):
        SphericalTransform(make_rule(kind, size), lmax, inverse)


@pytest.mark.parametrize("index", [[25], [-1], [], [[0, 1]]])
def test_bad_indices_are_refused(index):
    with pytest.raises(ConfigError, match="indices"):
        SphericalTransform(make_rule("lebedev", 50), LMAX, coefficients=torch.tensor(index))


def test_half_precision_inputs_meet_precise_constants():
    transform = SphericalTransform(make_rule("design", 64), LMAX)
    x = coefficients().to(torch.bfloat16)
    exact = copy.deepcopy(transform).double().to_points(x.double())
    out = transform.to_points(x)
    assert out.dtype == torch.bfloat16
    assert (out.double() - exact).abs().max() < exact.abs().max() * 2**-8
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wide = transform.to_points(x.float())
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide.double(), exact, rtol=0, atol=1e-5)
    fast = SphericalTransform(make_rule("design", 64), LMAX, low_precision=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = fast.to_points(x.float())
    assert narrow.dtype == torch.bfloat16
    error = (narrow.double() - exact).abs().max() / exact.abs().max()
    assert 1e-4 < error < TOL[torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inverse", ["quadrature", "least_squares"])
def test_parts_of_8_bits_add_up_to_the_constants(dtype, inverse):
    transform = SphericalTransform(make_rule("design", 64), LMAX, inverse)
    pairs = (
        (transform._to_points_parts.mT, transform.to_points_matrix, -1),
        (transform._from_points_parts, transform.from_points_matrix, 0),
    )
    for parts, matrix, dim in pairs:
        high, low = parts.to(dtype).double().chunk(2, dim=dim)
        error = (high + low - matrix.double()).abs().max() / matrix.abs().max()
        assert error < 2**-16
        assert (high - matrix.double()).abs().max() > 2**-11 * matrix.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_those_of_float32_rounded(dtype):
    transform = SphericalTransform(make_rule("design", 64), LMAX)
    x = coefficients().to(dtype)
    for function in (transform.to_points, transform.from_points):
        half, precise = x.requires_grad_(), x.detach().float().requires_grad_()
        out, expected = function(half), function(precise)
        assert out.dtype == dtype
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
        (mine,) = torch.autograd.grad(out, half, grad.to(dtype))
        (theirs,) = torch.autograd.grad(expected, precise, grad.to(dtype).float())
        bound = 2 * torch.finfo(dtype).eps
        assert (out - expected).abs().max() < bound * expected.abs().max()
        assert (mine - theirs).abs().max() < bound * theirs.abs().max()
        x = out.detach()


def test_transforms_are_differentiable():
    transform = SphericalTransform(make_rule("lebedev", 26), 2).double()
    x = coefficients(2, 2)[:2].requires_grad_()
    assert torch.autograd.gradcheck(transform.to_points, x)
    f = torch.randn(2, 26, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(transform.from_points, f)
    assert transform.to_points(x[:0]).shape == (0, 26, 2)


@pytest.mark.parametrize(("kind", "size"), [("lebedev", 50), ("design", 48)])
def test_bias_is_concatenated_orientation(kind, size):
    rule = make_rule(kind, size)
    generator = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, rule.num_points, 16, dtype=torch.float64, generator=generator)
    scale = 19**-0.5
    joined = torch.cat([q, rule.points], dim=1) @ torch.cat([k, rule.points], dim=1).T * scale
    bias = sphere_attention_bias(rule, scale, quadrature=False)
    torch.testing.assert_close(q @ k.T * scale + bias, joined, rtol=0, atol=1e-12)
    # with weights: the softmax is the quotient of two quadratures
    logits = q @ k.T * scale + sphere_attention_bias(rule, scale)
    exponential = joined.exp()
    expected = (exponential * rule.weights) / (exponential @ rule.weights)[:, None]
    torch.testing.assert_close(logits.softmax(dim=-1), expected, rtol=0, atol=1e-14)
    only_weights = sphere_attention_bias(rule, scale, relative_orientation=False)
    torch.testing.assert_close(only_weights.exp().mean(dim=1), torch.ones_like(rule.weights))
    nothing = sphere_attention_bias(rule, scale, relative_orientation=False, quadrature=False)
    assert nothing.abs().max() == 0


class Thirds(ConstantBuffers):
    """A module with a constant that no float32 holds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        value = torch.tensor([1 / 3, 1e-3], dtype=torch.float64, device="cpu")
        self.register_constant("third", value)


EXACT = torch.tensor([1 / 3, 1e-3], dtype=torch.float64)


def test_constants_follow_the_module_exactly():
    module = Thirds()
    assert module.third.dtype == torch.float32
    for cast in (torch.nn.Module.bfloat16, torch.nn.Module.half):
        cast(module)
        assert module.linear.weight.dtype in (torch.bfloat16, torch.float16)
        assert torch.equal(module.third, EXACT.float())
    module.double()
    assert torch.equal(module.third, EXACT)
    module.float()
    assert torch.equal(module.third, EXACT.float())
    parent = torch.nn.Sequential(module).to(torch.float64)
    assert torch.equal(parent[0].third, EXACT)


def test_constants_are_copied_and_pickled_but_not_saved():
    module = Thirds()
    assert set(module.state_dict()) == {"linear.weight", "linear.bias"}
    assert SphericalTransform(make_rule("lebedev", 26), 2).state_dict() == {}
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    copies = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(stream, weights_only=False),
    ]
    for other in copies:
        assert torch.equal(other.third, module.third)
        assert torch.equal(other.double().third, EXACT)
    assert module.third.dtype == torch.float32
    transform = pickle.loads(pickle.dumps(SphericalTransform(make_rule("lebedev", 26), 2)))
    assert transform.double().from_points_matrix.dtype == torch.float64


def test_constants_survive_the_meta_device():
    with torch.device("meta"):
        module = Thirds()
    assert module.third.device.type == "meta"
    module.to_empty(device="cpu")
    assert torch.equal(module.third, EXACT.float())


def test_constants_are_built_exactly_under_any_default_dtype():
    default = torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            module = Thirds()
            expected = EXACT if dtype == torch.float64 else EXACT.float()
            assert torch.equal(module.third, expected)
    finally:
        torch.set_default_dtype(default)


def test_constants_must_be_float64():
    with pytest.raises(TypeError, match="float64"):
        ConstantBuffers().register_constant("low", torch.zeros(2))
    empty = torch.zeros(2, dtype=torch.float64, device="meta")
    with pytest.raises(TypeError, match="device='cpu'"):
        ConstantBuffers().register_constant("empty", empty)
