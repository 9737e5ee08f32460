"""Degree-wise linear map."""

from __future__ import annotations

import torch

from est_ocp.nn.so3_linear import SO3Linear
from tests.nn.rotations import random_rotation, rotate
from tests.tolerances import TOL


def test_matches_one_matrix_product_a_degree() -> None:
    torch.manual_seed(0)
    linear = SO3Linear(5, 3, lmax=3).double()
    torch.nn.init.normal_(linear.bias)
    x = torch.randn(4, 16, 5, dtype=torch.float64)
    out = linear(x)
    for degree in range(4):
        for row in range(degree**2, (degree + 1) ** 2):
            expected = x[:, row] @ linear.weight[degree].T
            if degree == 0:
                expected = expected + linear.bias
            torch.testing.assert_close(out[:, row], expected)


def test_is_equivariant() -> None:
    torch.manual_seed(0)
    linear = SO3Linear(5, 3, lmax=4).double()
    torch.nn.init.normal_(linear.bias)
    x = torch.randn(4, 25, 5, dtype=torch.float64)
    rotation = random_rotation()
    error = linear(rotate(x, rotation, 4)) - rotate(linear(x), rotation, 4)
    assert error.abs().max() < TOL[torch.float64]


def test_part_of_the_degrees_has_the_weights_of_those_degrees() -> None:
    torch.manual_seed(0)
    full = SO3Linear(5, 3, lmax=2)
    part = SO3Linear(5, 3, lmax=2, lmin=1)
    assert part.bias is None
    assert part.weight.shape == (2, 3, 5)
    part.load_state_dict({"weight": full.weight[1:]})
    x = torch.randn(4, 9, 5)
    torch.testing.assert_close(part(x[:, 1:]), full(x)[:, 1:])
