"""Features on the sphere kept as products: the same numbers as features made at all points."""

from __future__ import annotations

import pytest
import torch

from est_ocp.nn.est_update import ESTUpdateBlock
from est_ocp.sphere import make_rule
from tests.tolerances import TOL

LMAX, CHANNELS, NODES = 2, 8, 5

VARIANTS = {
    "default": {},
    "equal_weights": {"rule": make_rule("design", 64)},
    "heads": {"num_heads": 2},
    "no_norm": {"norm": "none"},
    "hidden": {"hidden_channels": 12},
    "explicit": {"fused_attention": False},
    "recomputed": {"recompute_experts": True},
    "diagonal": {"inverse": "diagonal", "rule": make_rule("fibonacci", 60)},
    "least_squares": {"inverse": "least_squares", "rule": make_rule("fibonacci", 60)},
    "spherical_alone": {"num_steerable_experts": 0, "num_spherical_experts": 1},
    "top_k": {"top_k": 2},
    "scalar_path": {"scalar_path": True},
    "random_rotation": {"random_rotation": True},
}


def make(factored: bool, **options) -> ESTUpdateBlock:
    """A block whose biases are not zero."""
    torch.manual_seed(0)
    options = {"rule": make_rule("lebedev", 86)} | options
    block = ESTUpdateBlock(
        CHANNELS,
        LMAX,
        **options,
        spherical_expert_channels=16,
        steerable_expert_channels=12,
        factored=factored,
    ).double()
    for name, parameter in block.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter)
    return block


def run(block: ESTUpdateBlock, x: torch.Tensor) -> list[torch.Tensor]:
    """Result and gradients of the features and of all parameters."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_(True)
    out = block(x)
    weights = torch.linspace(-1.0, 2.0, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), [x, *block.parameters()])]


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_features_made_at_all_points(variant):
    options = VARIANTS[variant]
    factored, plain = make(True, **options), make(False, **options)
    assert factored.factored
    assert not plain.factored
    torch.manual_seed(2)
    x = torch.randn(NODES, (LMAX + 1) ** 2, CHANNELS, dtype=torch.float64)
    for mine, theirs in zip(run(factored, x), run(plain, x), strict=True):
        torch.testing.assert_close(mine, theirs, atol=100 * TOL[torch.float64], rtol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "point"},
        {"use_attention": False},
        {"num_spherical_experts": 0},
        {"rule": make_rule("lebedev", 26)},
        {"num_heads": 8},
    ],
)
def test_only_where_it_is_the_same_and_less(options):
    assert not make(True, **options).factored


def test_second_derivatives():
    block = make(True, fused_attention=False)
    x = torch.randn(2, (LMAX + 1) ** 2, CHANNELS, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
    direction = torch.randn_like(x)
    (second,) = torch.autograd.grad((grad * direction).sum(), x)
    step = 1e-6
    shifted = [(x + s * step * direction).detach().requires_grad_(True) for s in (1, -1)]
    ahead, behind = (torch.autograd.grad(block(y).square().sum(), y)[0] for y in shifted)
    torch.testing.assert_close(second, (ahead - behind) / (2 * step), atol=1e-5, rtol=1e-5)


def test_half_precision_is_made_at_all_points():
    block = make(True).float()
    with torch.autocast("cpu", torch.bfloat16):
        mine = block(torch.ones(2, (LMAX + 1) ** 2, CHANNELS))
    plain = make(False).float()
    with torch.autocast("cpu", torch.bfloat16):
        theirs = plain(torch.ones(2, (LMAX + 1) ** 2, CHANNELS))
    assert torch.equal(mine, theirs)


def test_no_nodes():
    assert make(True)(torch.zeros(0, (LMAX + 1) ** 2, CHANNELS, dtype=torch.float64)).shape[0] == 0
