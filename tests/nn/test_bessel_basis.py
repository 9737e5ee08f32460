from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import spherical_jn

from est_ocp.errors import ConfigError
from est_ocp.nn import BesselBasis, PolynomialEnvelope
from tests.tolerances import TOL


def test_values_are_spherical_bessel_functions():
    """``sqrt(2 / c^3) sin(n pi d / c) / (d / c)`` is ``n pi sqrt(2 / c^3) j_0(n pi d / c)``."""
    cutoff = 5.0
    distance = torch.linspace(0.05, 5.5, 60, dtype=torch.float64)
    basis = BesselBasis(cutoff, 8).double()
    with torch.no_grad():
        basis.frequencies.copy_(torch.pi * torch.arange(1, 9, dtype=torch.float64))
        values = basis(distance)
    order = np.pi * np.arange(1, 9)
    scaled = order * distance.numpy()[:, None] / cutoff
    functions = torch.from_numpy(order * np.sqrt(2 / cutoff**3) * spherical_jn(0, scaled))
    expected = PolynomialEnvelope(cutoff)(distance)[:, None] * functions
    torch.testing.assert_close(values, expected, atol=TOL[torch.float64], rtol=0)
    assert not values[distance >= cutoff].any()


def test_starts_at_multiples_of_pi_and_trains_them():
    basis = BesselBasis(4.0, 3)
    torch.testing.assert_close(basis.frequencies.detach() / torch.pi, torch.tensor([1.0, 2, 3]))
    basis(torch.tensor([1.3, 2.1])).sum().backward()
    assert (basis.frequencies.grad != 0).all()


def test_stays_in_float32_under_autocast():
    basis, distance = BesselBasis(5.0, 4), torch.tensor([0.7, 2.2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = basis(distance)
    assert torch.equal(low, basis(distance))


@pytest.mark.parametrize(("cutoff", "size"), [(0.0, 8), (5.0, 0)])
def test_impossible_sizes_are_named(cutoff, size):
    with pytest.raises(ConfigError, match="a Bessel basis needs"):
        BesselBasis(cutoff, size)
