from __future__ import annotations

import pytest
import torch

from est_ocp.nn.spherical_expert import SphericalExperts, _GatedSiLU
from tests.tolerances import BATCH, TOL


def randomised(module):
    """The module in float64 with non-zero biases."""
    module = module.double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def loop(module, f, gate):
    """One expert after the other, each with its own weights."""
    out = torch.zeros_like(f)
    for e in range(module.num_experts):
        hidden = torch.nn.functional.silu(f @ module.weight_in[e].T + module.bias_in[e])
        y = hidden @ module.weight_out[:, e].T
        if module.bias_out is not None:
            y = y + module.bias_out[e]
        out = out + gate[:, e, None, None] * y
    return out


@pytest.mark.parametrize("num_experts", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_a_loop_over_experts(num_experts, bias):
    torch.manual_seed(0)
    module = randomised(SphericalExperts(6, 10, num_experts, bias=bias))
    f = torch.randn(4, 7, 6, dtype=torch.float64, requires_grad=True)
    gate = torch.rand(4, num_experts, dtype=torch.float64, requires_grad=True)
    leaves = [f, gate, *module.parameters()]
    fast, slow = module(f, gate), loop(module, f, gate)
    torch.testing.assert_close(fast, slow, rtol=0, atol=TOL[torch.float64])
    for a, b in zip(
        torch.autograd.grad(fast.square().sum(), leaves),
        torch.autograd.grad(slow.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=TOL[torch.float64])


def test_gated_silu_gradients_to_second_order():
    torch.manual_seed(0)
    hidden = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, 1, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_GatedSiLU.apply, (hidden, weight))
    assert torch.autograd.gradgradcheck(_GatedSiLU.apply, (hidden, weight))


def test_gated_silu_keeps_one_large_tensor_only():
    sizes = []
    hidden = torch.randn(2, 50, 3, 8, requires_grad=True)
    weight = torch.rand(2, 1, 3, 1, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    ):
        _GatedSiLU.apply(hidden, weight)
    assert sorted(sizes) == [weight.numel(), hidden.numel()]


def test_points_are_independent():
    module = SphericalExperts(6, 10, 2)
    f, gate = torch.randn(3, 7, 6), torch.rand(3, 2)
    changed = f.clone()
    changed[:, 3] += 1.0
    same = torch.arange(7) != 3
    y, z = module(f, gate), module(changed, gate)
    torch.testing.assert_close(y[:, same], z[:, same], rtol=0, atol=BATCH[torch.float32])
    assert (y[:, 3] - z[:, 3]).abs().max() > 1e-3


def test_autocast_runs_the_products_in_bfloat16():
    torch.manual_seed(0)
    module = SphericalExperts(6, 10, 2)
    f, gate = torch.randn(3, 7, 6), torch.rand(3, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = module(f, gate)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), module(f, gate), rtol=0, atol=TOL[torch.bfloat16])


def test_no_nodes():
    module = SphericalExperts(6, 10, 2)
    assert module(torch.randn(0, 7, 6), torch.rand(0, 2)).shape == (0, 7, 6)


def test_start_is_uniform_in_the_documented_bounds():
    torch.manual_seed(0)
    module = SphericalExperts(64, 256, 4, gain=2.0)
    assert 0.98 / 8 < module.weight_in.abs().max() <= 1 / 8
    assert 0.98 * 2 / 16 < module.weight_out.abs().max() <= 2 / 16
    assert module.bias_in.abs().max() == 0 == module.bias_out.abs().max()


def test_parameter_count():
    module = SphericalExperts(128, 512, 1)
    assert sum(p.numel() for p in module.parameters()) == 2 * 128 * 512 + 512 + 128
