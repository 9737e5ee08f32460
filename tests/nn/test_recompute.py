from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from est_ocp.nn.recompute import recomputed
from est_ocp.nn.spherical_expert import SphericalExperts

SHAPE = (4, 7, 6)


def make() -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """Experts with non-zero biases, and inputs that need gradients."""
    torch.manual_seed(0)
    module = SphericalExperts(6, 40, 2)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    inputs = [torch.randn(SHAPE), torch.rand(4, 2)]
    return module, [t.requires_grad_(True) for t in inputs]


def results(function, module, inputs, low: bool) -> list[torch.Tensor]:
    """Output and all gradients."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
        out = function(*inputs)
    leaves = [*inputs, *module.parameters()]
    return [out, *torch.autograd.grad(out.float().square().sum(), leaves)]


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
def test_experts_keep_no_hidden_tensor_and_change_no_bit(low):
    module, inputs = make()
    sizes = {False: [], True: []}
    found = {}
    for module.recompute in (False, True):
        saved = sizes[module.recompute]
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t
        ):
            found[module.recompute] = results(module, module, inputs, low)
    for a, b in zip(found[True], found[False], strict=True):
        assert torch.equal(a, b)
    hidden = inputs[0][..., 0].numel() * 2 * 40
    assert sum(sizes[False]) > 2 * hidden
    assert sum(sizes[True]) < hidden


def test_traced_in_one_graph_and_nested_in_recomputed_layers():
    module, inputs = make()
    expected = results(module, module, inputs, low=False)
    module.recompute = True
    traced = torch.compile(module, backend="aot_eager", dynamic=True, fullgraph=True)
    for function in (
        traced,
        lambda *a: checkpoint(module, *a, use_reentrant=False),
        lambda *a: checkpoint(traced, *a, use_reentrant=False),
    ):
        for a, b in zip(results(function, module, inputs, low=False), expected, strict=True):
            assert torch.equal(a, b)


def test_second_derivatives():
    torch.manual_seed(0)
    experts = SphericalExperts(2, 3, 2, recompute=True).double()
    x = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    gate = torch.rand(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(experts, (x, gate))


def test_computed_once_without_gradients():
    calls = []
    x = torch.ones(2, requires_grad=True)

    def double(t):
        calls.append(t)
        return (2 * t).sin()

    with torch.no_grad():
        recomputed(double, x)
    assert len(calls) == 1
    recomputed(double, x).sum().backward()
    assert len(calls) == 3
    assert torch.equal(x.grad, 2 * torch.cos(2 * x.detach()))
