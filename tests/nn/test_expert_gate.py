from __future__ import annotations

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.nn.expert_gate import ExpertGate, ExpertGateMLP, keep_top_k
from tests.tolerances import TOL

GATES = [ExpertGate, ExpertGateMLP]


@pytest.mark.parametrize("gate_class", GATES)
@pytest.mark.parametrize("top_k", [None, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_sum_to_one_and_top_k_keeps_k(gate_class, top_k, dtype):
    torch.manual_seed(0)
    gate = gate_class(16, 5, top_k).to(dtype)
    probabilities = gate(torch.randn(40, 16, dtype=dtype))
    assert probabilities.dtype == dtype
    assert (probabilities >= 0).all()
    total = probabilities.sum(dim=1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=TOL[dtype])
    assert ((probabilities > 0).sum(dim=1) == (top_k or 5)).all()


def test_linear_gate_is_softmax_of_one_matrix():
    gate = ExpertGate(16, 5).double()
    x = torch.randn(7, 16, dtype=torch.float64)
    torch.testing.assert_close(gate(x), torch.softmax(x @ gate.linear.weight.T, dim=1))
    assert sum(p.numel() for p in gate.parameters()) == 16 * 5


def test_mlp_gate_cannot_close_on_an_expert():
    """The outer SiLU is bounded from below, so logits of -50 become 0 instead."""
    gate = ExpertGateMLP(16, 3).double()
    with torch.no_grad():
        gate.mlp[2].weight.zero_()
        gate.mlp[2].bias.copy_(torch.tensor([-50.0, 0.0, 1.0]))
    expected = torch.softmax(torch.tensor([0.0, 0.0, 0.7310585786], dtype=torch.float64), dim=0)
    torch.testing.assert_close(gate(torch.randn(1, 16).double())[0], expected)


def test_mlp_gate_ignores_the_scale_of_its_input():
    gate = ExpertGateMLP(16, 3).double()
    x = torch.randn(4, 16, dtype=torch.float64)
    torch.testing.assert_close(gate(x), gate(1e3 * x), rtol=0, atol=1e-4)


def test_top_k_keeps_the_ratios_of_the_largest():
    kept = keep_top_k(torch.tensor([[0.1, 0.4, 0.2, 0.3]]), 2)
    torch.testing.assert_close(kept, torch.tensor([[0.0, 4 / 7, 0.0, 3 / 7]]))


@pytest.mark.parametrize("gate_class", GATES)
@pytest.mark.parametrize("top_k", [None, 2])
def test_every_parameter_gets_a_gradient(gate_class, top_k):
    torch.manual_seed(0)
    gate = gate_class(16, 4, top_k)
    (gate(torch.randn(20, 16)) ** 2).sum().backward()
    for name, parameter in gate.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("gate_class", GATES)
def test_autocast_does_not_touch_the_gate(gate_class):
    gate = gate_class(16, 4)
    x = torch.randn(20, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = gate(x)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, gate(x), rtol=0, atol=0)


@pytest.mark.parametrize("gate_class", GATES)
def test_bfloat16_scalars_are_accepted(gate_class):
    assert gate_class(16, 4)(torch.randn(3, 16).bfloat16()).dtype == torch.float32
    gate = gate_class(16, 4).bfloat16()
    assert gate(torch.randn(3, 16).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, None), (4, 1), (4, 5), (4, 0)])
def test_useless_gates_are_refused(num_experts, top_k):
    with pytest.raises(ConfigError, match=r"experts"):
        ExpertGate(16, num_experts, top_k)


def test_hook_sees_the_probabilities():
    gate = ExpertGate(16, 4)
    seen = []
    gate.register_forward_hook(lambda module, inputs, output: seen.append(output))
    y = gate(torch.randn(3, 16))
    assert seen[0] is y
