from __future__ import annotations

import pytest
import torch

from est_ocp.nn.steerable_expert import SteerableExperts
from tests.nn._rotation import rotation_error
from tests.tolerances import BATCH, TOL


def randomised(module):
    """The module in float64 with non-zero biases."""
    module = module.double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def loop(module, x, gate):
    """One expert after the other, one coefficient after the other."""
    out = torch.zeros_like(x)
    for e in range(module.num_experts):
        for i in range(x.shape[1]):
            degree = int(i**0.5)
            hidden = x[:, i] @ module.weight_in[degree, e].T
            if degree == 0:
                hidden = torch.nn.functional.silu(hidden + module.bias_in[e])
            else:
                logits = x[:, 0] @ module.weight_gate[degree - 1, e].T
                hidden = hidden * torch.sigmoid(logits + module.bias_gate[degree - 1, e])
            y = hidden @ module.weight_out[degree, :, e].T
            if degree == 0:
                y = y + module.bias_out[e]
            out[:, i] = out[:, i] + gate[:, e, None] * y
    return out


@pytest.mark.parametrize("num_experts", [1, 3])
@pytest.mark.parametrize("lmax", [0, 1, 3])
def test_equals_a_loop_over_experts(num_experts, lmax):
    torch.manual_seed(0)
    module = randomised(SteerableExperts(6, 10, num_experts, lmax))
    x = torch.randn(4, (lmax + 1) ** 2, 6, dtype=torch.float64, requires_grad=True)
    gate = torch.rand(4, num_experts, dtype=torch.float64, requires_grad=True)
    leaves = [x, gate, *module.parameters()]
    fast, slow = module(x, gate), loop(module, x, gate)
    torch.testing.assert_close(fast, slow, rtol=0, atol=TOL[torch.float64])
    for a, b in zip(
        torch.autograd.grad(fast.square().sum(), leaves),
        torch.autograd.grad(slow.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=TOL[torch.float64])


@pytest.mark.parametrize("lmax", [1, 4, 6])
def test_strictly_equivariant(lmax):
    torch.manual_seed(0)
    module = randomised(SteerableExperts(6, 10, 2, lmax))
    x = torch.randn(5, (lmax + 1) ** 2, 6, dtype=torch.float64)
    gate = torch.rand(5, 2, dtype=torch.float64)
    assert rotation_error(lambda f: module(f, gate), x, lmax) < 1e-10


def test_gradgradcheck():
    torch.manual_seed(0)
    module = randomised(SteerableExperts(2, 3, 2, 1))
    x = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    gate = torch.rand(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x, gate))
    assert torch.autograd.gradgradcheck(module, (x, gate))


def test_nodes_are_independent_and_none_is_fine():
    module = SteerableExperts(6, 10, 2, 2)
    x, gate = torch.randn(5, 9, 6), torch.rand(5, 2)
    alone = torch.cat([module(x[n : n + 1], gate[n : n + 1]) for n in range(5)])
    torch.testing.assert_close(module(x, gate), alone, rtol=0, atol=BATCH[torch.float32])
    assert module(x[:0], gate[:0]).shape == (0, 9, 6)


def test_autocast_stays_close():
    torch.manual_seed(0)
    module = SteerableExperts(6, 10, 2, 2)
    x, gate = torch.randn(5, 9, 6), torch.rand(5, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = module(x, gate)
    torch.testing.assert_close(low.float(), module(x, gate), rtol=0, atol=TOL[torch.bfloat16])


def test_parameter_count():
    """Two degree-wise maps of 5 x 128 x 256, gates of 4 degrees, biases: about 0.46 million."""
    module = SteerableExperts(128, 256, 1, 4)
    count = sum(p.numel() for p in module.parameters())
    assert count == 2 * 5 * 128 * 256 + 4 * 128 * 256 + 4 * 256 + 256 + 128
    assert round(count / 1e6, 2) == 0.46
