"""Smooth leaky ReLU."""

from __future__ import annotations

import torch

from est_ocp.nn.activation import smooth_leaky_relu


def test_formula_and_slopes() -> None:
    x = torch.linspace(-60, 60, 241, dtype=torch.float64)
    slope = 0.2
    expected = (1 + slope) / 2 * x + (1 - slope) / 2 * x * (2 * torch.sigmoid(x) - 1)
    torch.testing.assert_close(smooth_leaky_relu(x), expected)
    assert smooth_leaky_relu(x)[0] == slope * x[0]
