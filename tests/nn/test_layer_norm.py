"""Layer normalisation of steerable features."""

from __future__ import annotations

import pytest
import torch

from est_ocp.nn.layer_norm import EquivariantLayerNorm
from tests.nn.rotations import random_rotation, rotate
from tests.tolerances import TOL


def make(lmax: int, channels: int) -> EquivariantLayerNorm:
    torch.manual_seed(0)
    norm = EquivariantLayerNorm(lmax, channels).double()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter, 1.0, 0.3)
    return norm


def test_is_equivariant() -> None:
    norm = make(4, 6)
    x = 3.0 * torch.randn(5, 25, 6, dtype=torch.float64)
    rotation = random_rotation()
    error = norm(rotate(x, rotation, 4)) - rotate(norm(x), rotation, 4)
    assert error.abs().max() < TOL[torch.float64]


def test_every_degree_has_the_same_share_in_the_scale() -> None:
    """Mean squares 1, 4, ... of the degrees must come out divided by their plain average."""
    norm = EquivariantLayerNorm(3, 1, eps=0.0).double()
    x = torch.zeros(1, 16, 1, dtype=torch.float64)
    for degree in range(1, 4):
        x[:, degree**2 : (degree + 1) ** 2] = float(degree)
    expected = x[:, 1:] / ((1 + 4 + 9) / 3) ** 0.5
    torch.testing.assert_close(norm(x)[:, 1:], expected)


def test_scalars_alone() -> None:
    norm = make(0, 6)
    x = torch.randn(5, 1, 6, dtype=torch.float64)
    torch.testing.assert_close(norm(x), norm.scalar_norm(x))


def test_zero_features_and_no_nodes_give_finite_values_and_gradients() -> None:
    norm = make(2, 6)
    x = torch.zeros(3, 9, 6, dtype=torch.float64, requires_grad=True)
    norm(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert norm(x[:0]).shape == (0, 9, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_keeps_float32(dtype: torch.dtype) -> None:
    norm = make(2, 6).float()
    x = torch.randn(3, 9, 6).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, norm(x.float()))
