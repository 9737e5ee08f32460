"""Linear map, norm, gate and activations against e3nn's own, and against their definitions."""

from __future__ import annotations

import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from e3nn.math import moment

from est_ocp.errors import ConfigError
from est_ocp.nn.activation import smooth_leaky_relu
from est_ocp.nn.equiformer import IrrepsGate, IrrepsLayerNorm, IrrepsLayout, IrrepsLinear
from est_ocp.nn.equiformer.activation import (
    SIGMOID,
    SILU,
    SMOOTH_LEAKY_RELU,
    scaled_sigmoid,
    scaled_silu,
)
from tests.nn.equiformer.features import IRREPS, flat
from tests.nn.equiformer.original import rotate_flat
from tests.nn.rotations import random_rotation
from tests.tolerances import TOL

EXACT = {"atol": TOL[torch.float64], "rtol": 0}
OUT = IrrepsLayout("3x0e+5x2e")


def test_linear_is_e3nns_with_its_weights():
    linear = IrrepsLinear(IRREPS, OUT).double()
    torch.nn.init.normal_(linear.bias)
    theirs = o3.Linear(str(IRREPS), str(OUT), biases=True).double()
    with torch.no_grad():
        matrices = [weight.T * weight.shape[1] ** 0.5 for weight in linear.weights]
        theirs.weight.copy_(torch.cat([matrix.flatten() for matrix in matrices]))
        theirs.bias.copy_(linear.bias)
    x = flat(IRREPS, 4)
    torch.testing.assert_close(OUT.join(linear(IRREPS.split(x))), theirs(x), **EXACT)


def test_linear_keeps_the_variance_at_the_start():
    torch.manual_seed(0)
    layout = IrrepsLayout("300x0e+200x1e")
    linear = IrrepsLinear(layout, IrrepsLayout("400x0e+100x1e")).double()
    for block in linear(layout.split(flat(layout, 20))):
        assert block.std().item() == pytest.approx(1.0, abs=0.05)
    assert not linear.bias.any()


def test_linear_cannot_make_a_degree():
    with pytest.raises(ConfigError, match="cannot make degree 3"):
        IrrepsLinear(IRREPS, IrrepsLayout("1x0e+1x3e"))


def test_norm_by_its_definition():
    norm = IrrepsLayerNorm(IRREPS).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = 3 * flat(IRREPS, 4) + 1
    parts = [x[:, s].reshape(4, mul, -1) for (mul, _), s in _slices(IRREPS)]
    parts[0] = parts[0] - parts[0].mean(1, keepdim=True)
    expected, start = [], 0
    for part in parts:
        width = part.shape[1]
        scale = norm.weight[start : start + width, None]
        mean_square = part.pow(2).mean((1, 2), keepdim=True)
        expected.append(part / (mean_square + 1e-5).sqrt() * scale)
        start += width
    expected[0] = expected[0] + norm.bias[:, None]
    torch.testing.assert_close(norm(x), torch.cat([e.flatten(1) for e in expected], 1), **EXACT)


def _slices(layout: IrrepsLayout):
    irreps = o3.Irreps(str(layout))
    return zip(irreps, irreps.slices(), strict=True)


def test_norm_is_equivariant_and_bounded_at_zero():
    norm = IrrepsLayerNorm(IRREPS).double()
    x, rotation = flat(IRREPS, 4), random_rotation()
    torch.testing.assert_close(
        norm(rotate_flat(x, IRREPS, rotation)), rotate_flat(norm(x), IRREPS, rotation), **EXACT
    )
    zero = torch.zeros_like(x, requires_grad=True)
    norm(zero).square().sum().backward()
    assert torch.isfinite(zero.grad).all()
    assert IrrepsLayerNorm(IrrepsLayout("2x1e")).bias is None


def test_norm_stays_in_float32_under_autocast():
    norm = IrrepsLayerNorm(IRREPS)
    x = flat(IRREPS, 4).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = norm(x.bfloat16())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, norm(x.bfloat16().float()))


@pytest.mark.parametrize(
    ("function", "constant"),
    [
        (torch.nn.functional.silu, SILU),
        (torch.sigmoid, SIGMOID),
        (smooth_leaky_relu, SMOOTH_LEAKY_RELU),
    ],
)
def test_activation_constants_are_e3nns(function, constant):
    estimate = moment(function, 2, dtype=torch.float64, device="cpu") ** -0.5
    assert estimate.item() == pytest.approx(constant, rel=1e-6)


def test_gate_is_e3nns():
    gate = IrrepsGate(IRREPS)
    # e3nn would multiply by its own estimates of the same constants.
    theirs = e3nn_nn.Gate("6x0e", [torch.nn.functional.silu], "6x0e", [torch.sigmoid], "4x1e+2x2e")
    assert str(o3.Irreps(theirs.irreps_in).simplify()) == str(gate.irreps_in)
    x = flat(gate.irreps_in, 5)
    ours = IRREPS.join(gate(gate.irreps_in.split(x)))
    torch.testing.assert_close(ours, theirs(x), atol=1e-6, rtol=0)
    scalars, gates = x[:, :6], x[:, 6:10]
    torch.testing.assert_close(ours[:, :6], scaled_silu(scalars), **EXACT)
    vectors = x[:, 12:24].reshape(5, 4, 3) * scaled_sigmoid(gates)[..., None]
    torch.testing.assert_close(ours[:, 6:18], vectors.flatten(1), **EXACT)


def test_gate_without_scalars_is_refused():
    with pytest.raises(ConfigError, match="needs scalars"):
        IrrepsGate(IrrepsLayout("3x1e"))
