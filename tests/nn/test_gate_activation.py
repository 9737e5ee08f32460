from __future__ import annotations

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.nn.gate_activation import GateActivation
from tests.nn._rotation import rotation_error
from tests.tolerances import TOL


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silu_on_scalars_and_sigmoid_gates_on_the_rest(dtype):
    torch.manual_seed(0)
    x = torch.randn(6, 9, 5, dtype=dtype)
    gates = torch.randn(6, 2, 5, dtype=dtype)
    y = GateActivation(2)(x, gates)
    torch.testing.assert_close(y[:, 0], torch.nn.functional.silu(x[:, 0]), rtol=0, atol=TOL[dtype])
    for i in range(1, 9):
        degree = int(i**0.5)
        expected = x[:, i] * torch.sigmoid(gates[:, degree - 1])
        torch.testing.assert_close(y[:, i], expected, rtol=0, atol=TOL[dtype])


def test_weight_multiplies_the_result():
    torch.manual_seed(0)
    x = torch.randn(4, 9, 5, dtype=torch.float64)
    gates = torch.randn(4, 2, 5, dtype=torch.float64)
    weight = torch.rand(4, 5, dtype=torch.float64)
    module = GateActivation(2)
    torch.testing.assert_close(module(x, gates, weight), module(x, gates) * weight[:, None])


def test_equivariant_for_invariant_gates():
    torch.manual_seed(0)
    x = torch.randn(4, 25, 3, dtype=torch.float64)
    gates = torch.randn(4, 4, 3, dtype=torch.float64)
    assert rotation_error(lambda f: GateActivation(4)(f, gates), x, 4) < TOL[torch.float64]


def test_degree_zero_needs_no_gates():
    x = torch.randn(4, 1, 3)
    torch.testing.assert_close(GateActivation(0)(x, None), torch.nn.functional.silu(x))


def test_negative_degree_is_refused():
    with pytest.raises(ConfigError, match="lmax"):
        GateActivation(-1)
