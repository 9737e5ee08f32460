"""Gaussian expansion of distances."""

from __future__ import annotations

import math

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.nn.radial_basis import GaussianBasis


def test_values() -> None:
    basis = GaussianBasis(cutoff=6.0, num_basis=7, width=2.0).double()
    out = basis(torch.tensor([0.0, 2.0, 6.0], dtype=torch.float64))
    for row, distance in enumerate((0.0, 2.0, 6.0)):
        for k in range(7):
            assert out[row, k].item() == pytest.approx(math.exp(-((distance - k) ** 2) / 8.0))


def test_double_is_exact_after_a_life_in_float32() -> None:
    distance = torch.linspace(0.5, 12, 50, dtype=torch.float64)
    late = GaussianBasis(12.0, 600).float().double()(distance)
    spacing = 12.0 / 599
    centres = torch.arange(600, dtype=torch.float64) * spacing
    expected = torch.exp(-0.5 * ((distance[:, None] - centres) / (2 * spacing)) ** 2)
    torch.testing.assert_close(late, expected, rtol=0, atol=1e-12)


def test_autocast_keeps_float32() -> None:
    basis = GaussianBasis(12.0, 600)
    distance = torch.rand(20) * 12
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(basis(distance), basis(distance))
        assert basis(distance).dtype == torch.float32


def test_no_edges() -> None:
    assert GaussianBasis(12.0, 600)(torch.zeros(0)).shape == (0, 600)


@pytest.mark.parametrize(("cutoff", "num_basis"), [(0.0, 8), (-1.0, 8), (5.0, 1)])
def test_refuses_what_cannot_be_a_basis(cutoff: float, num_basis: int) -> None:
    with pytest.raises(ConfigError, match="cutoff"):
        GaussianBasis(cutoff, num_basis)
