from __future__ import annotations

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.nn.expert_gate import ExpertGate, ExpertGateMLP
from est_ocp.nn.mixture_of_experts import MixtureOfHybridExperts
from est_ocp.sphere import make_rule
from tests.tolerances import TOL

RULE = make_rule("fibonacci", 20)
SIZES = {"spherical_expert_channels": 12, "steerable_expert_channels": 10}


def inputs(lmax=2, num_points=20):
    torch.manual_seed(0)
    x = torch.randn(4, (lmax + 1) ** 2, 6, dtype=torch.float64)
    return x, torch.randn(4, num_points, 6, dtype=torch.float64)


@pytest.mark.parametrize("gate", ["linear", "mlp"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_both_kinds_share_one_gate(gate, top_k):
    x, f = inputs()
    module = MixtureOfHybridExperts(
        6,
        2,
        RULE,
        num_spherical_experts=2,
        num_steerable_experts=3,
        top_k=top_k,
        gate=gate,
        **SIZES,
    ).double()
    steerable, spherical = module(x, f)
    probabilities = module.gate(x[:, 0])
    expected = module.spherical(module.spherical_norm(f), probabilities[:, :2])
    torch.testing.assert_close(spherical, expected, rtol=0, atol=TOL[torch.float64])
    expected = module.steerable(x, probabilities[:, 2:])
    torch.testing.assert_close(steerable, expected, rtol=0, atol=TOL[torch.float64])
    assert isinstance(module.gate, ExpertGate if gate == "linear" else ExpertGateMLP)


def test_absent_kinds_have_no_parameters_and_no_output():
    x, f = inputs()
    steerable_only = MixtureOfHybridExperts(6, 2, RULE, num_spherical_experts=0, **SIZES).double()
    assert not any("spherical" in name for name, _ in steerable_only.named_parameters())
    steerable, spherical = steerable_only(x)
    assert steerable.shape == x.shape
    assert spherical is None
    spherical_only = MixtureOfHybridExperts(6, 2, RULE, num_steerable_experts=0, **SIZES).double()
    assert not any("steerable" in name for name, _ in spherical_only.named_parameters())
    steerable, spherical = spherical_only(x, f)
    assert spherical.shape == f.shape
    assert steerable is None


@pytest.mark.parametrize("fused", [True, False])
def test_one_option_switches_the_kernels_of_both_kinds(fused):
    module = MixtureOfHybridExperts(6, 2, RULE, fused=fused, **SIZES)
    assert module.spherical.fused is module.steerable.fused is fused


def test_a_single_expert_has_no_gate():
    x, _ = inputs()
    module = MixtureOfHybridExperts(
        6, 2, RULE, num_spherical_experts=0, num_steerable_experts=1, **SIZES
    ).double()
    assert module.gate is None
    expected = module.steerable(x, torch.ones(4, 1, dtype=torch.float64))
    torch.testing.assert_close(module(x)[0], expected)


@pytest.mark.parametrize("kind", ["spherical", "steerable"])
def test_scale_at_the_start_does_not_depend_on_the_number_of_experts(kind):
    torch.manual_seed(0)
    x, f = torch.randn(200, 9, 32), torch.randn(200, 20, 32)
    scales = []
    for num_experts in (1, 8):
        numbers = {"num_spherical_experts": 0, "num_steerable_experts": 0}
        numbers[f"num_{kind}_experts"] = num_experts
        module = MixtureOfHybridExperts(
            32, 2, RULE, spherical_expert_channels=64, steerable_expert_channels=64, **numbers
        )
        steerable, spherical = module(x, f)
        y = spherical if kind == "spherical" else steerable
        scales.append(y.std().item())
    assert scales[1] == pytest.approx(scales[0], rel=0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_spherical_experts": 0, "num_steerable_experts": 0}, "at least one expert"),
        ({"num_spherical_experts": -1}, "at least one expert"),
        ({"gate": "hard"}, "unknown gate 'hard'"),
        ({"top_k": 7}, "top_k = 7"),
        ({"num_spherical_experts": 1, "num_steerable_experts": 0, "top_k": 1}, "single expert"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        MixtureOfHybridExperts(6, 2, RULE, **options)
