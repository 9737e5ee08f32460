"""Linear maps of several experts, each of its own rows."""

from __future__ import annotations

import pytest
import torch

from est_ocp.nn import expert_products as module
from est_ocp.nn.expert_products import MANY_EXPERTS, expert_products

#: Sums in another order.
ROUNDING = 1e-12


@pytest.mark.parametrize("num_experts", [1, 3, MANY_EXPERTS])
def test_result_and_gradients_equal_those_of_one_sum(num_experts: int):
    torch.manual_seed(0)
    apart = torch.randn(4, 9, num_experts, 6, dtype=torch.float64)
    leaves = [apart.permute(2, 0, 1, 3), torch.randn(5, num_experts, 6, dtype=torch.float64)]
    for leaf in leaves:
        leaf.requires_grad_()
    out = expert_products(*leaves)
    expected = torch.einsum("enih,ceh->enic", *leaves)
    assert out.shape == (num_experts, 4, 9, 5)
    assert (out - expected).abs().max() < ROUNDING
    grad = torch.randn_like(out)
    mine = torch.autograd.grad(out, leaves, grad)
    theirs = torch.autograd.grad(expected, leaves, grad)
    for gradient, reference in zip(mine, theirs, strict=True):
        assert (gradient - reference).abs().max() < ROUNDING


@pytest.mark.parametrize("many", [1, 8])
def test_derivatives_of_both_kinds(monkeypatch, many: int):
    monkeypatch.setattr(module, "MANY_EXPERTS", many)
    rows = torch.randn(2, 3, 1, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(expert_products, (rows, weight))
    assert torch.autograd.gradgradcheck(expert_products, (rows, weight))


def test_autocast_gives_its_type():
    rows, weight = torch.randn(2, 3, 4, 8), torch.randn(8, 2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert expert_products(rows, weight).dtype == torch.bfloat16
    assert expert_products(rows, weight).dtype == torch.float32
