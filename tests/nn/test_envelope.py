"""The envelope of messages: values, derivatives at the cutoff, precision."""

from __future__ import annotations

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.nn.envelope import PolynomialEnvelope

CUTOFF = 4.5


def derivatives(exponent: int, distance: float) -> list[float]:
    """Value, first and second derivative, float64."""
    x = torch.tensor([distance], dtype=torch.float64, requires_grad=True)
    value = PolynomialEnvelope(CUTOFF, exponent)(x)
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return [value.item(), first.item(), second.item()]


@pytest.mark.parametrize("exponent", [1, 2, 5, 6])
def test_values_are_those_of_the_published_polynomial(exponent: int) -> None:
    p = exponent
    d = torch.linspace(0, 1, 30, dtype=torch.float64)
    expected = (
        1
        - (p + 1) * (p + 2) / 2 * d**p
        + p * (p + 2) * d ** (p + 1)
        - p * (p + 1) / 2 * d ** (p + 2)
    )
    out = PolynomialEnvelope(CUTOFF, exponent)(d * CUTOFF)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    assert (out.diff() < 0).all()


@pytest.mark.parametrize("exponent", [1, 5])
def test_two_derivatives_vanish_at_the_cutoff_and_beyond(exponent: int) -> None:
    for distance in (CUTOFF, CUTOFF * (1 + 1e-9), 2 * CUTOFF):
        assert derivatives(exponent, distance) == [0.0, 0.0, 0.0]
    step = 1e-4
    value, first, second = derivatives(exponent, CUTOFF - step)
    # The third derivative at the cutoff, by the factor (1 - d)^3.
    third = -exponent * (exponent + 1) * (exponent + 2) / CUTOFF**3
    assert value == pytest.approx(-third * step**3 / 6, rel=1e-3)
    assert first == pytest.approx(third * step**2 / 2, rel=1e-3)
    assert second == pytest.approx(-third * step, rel=1e-3)


def test_it_is_one_and_flat_at_zero() -> None:
    assert derivatives(5, 0.0) == pytest.approx([1.0, 0.0, 0.0], abs=1e-15)


def test_float32_keeps_its_digits_near_the_cutoff() -> None:
    distance = (CUTOFF * (1 - torch.logspace(-4, -1, 20))).double()
    exact = PolynomialEnvelope(CUTOFF)(distance)
    rounded = PolynomialEnvelope(CUTOFF)(distance.float())
    assert rounded.dtype == torch.float32
    # A relative error of 6e-8 in the distance is one of 6e-4 in what is left to the cutoff.
    torch.testing.assert_close(rounded.double(), exact, rtol=5e-3, atol=0)
    assert (rounded > 0).all()


def test_autocast_keeps_float32() -> None:
    envelope = PolynomialEnvelope(CUTOFF)
    distance = torch.rand(20) * CUTOFF
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(envelope(distance), envelope(distance.clone()))
        assert envelope(distance).dtype == torch.float32
        assert envelope(distance.bfloat16()).dtype == torch.float32
    assert envelope(distance.double()).dtype == torch.float64
    assert envelope(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize(("cutoff", "exponent"), [(0.0, 5), (-1.0, 5), (5.0, 0)])
def test_refuses_what_cannot_be_an_envelope(cutoff: float, exponent: int) -> None:
    with pytest.raises(ConfigError, match="envelope"):
        PolynomialEnvelope(cutoff, exponent)
