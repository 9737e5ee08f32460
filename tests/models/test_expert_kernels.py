"""Where the experts' fused kernel is allowed: nowhere that second derivatives are needed."""

from __future__ import annotations

import pytest

from est_ocp.nn import ESTUpdateBlock, MixtureOfHybridExperts
from tests.models.every_backbone import BACKBONES

CONSERVATIVE = {"direct_forces": False, "regress_forces": True}


def experts(**kwargs) -> list:
    """Spherical experts of the update blocks of a small backbone."""
    name = kwargs.pop("backbone")
    modules = BACKBONES[name](**kwargs).modules()
    found = [m.spherical for m in modules if isinstance(m, MixtureOfHybridExperts)]
    assert found
    return found


def updates(**kwargs) -> list:
    """EST update blocks of a small backbone."""
    modules = BACKBONES[kwargs.pop("backbone")](**kwargs).modules()
    return [m for m in modules if isinstance(m, ESTUpdateBlock)]


@pytest.mark.parametrize("backbone", ["est_eqv2", "est", "est_gotennet", "est_equiformer"])
def test_direct_models_use_the_kernel_and_recompute_elsewhere(backbone):
    assert all(e.fused and e.recompute for e in experts(backbone=backbone))


@pytest.mark.parametrize("backbone", ["est_eqv2", "est", "est_gotennet"])
def test_conservative_models_never_use_the_kernel(backbone):
    assert not any(e.fused for e in experts(backbone=backbone, **CONSERVATIVE))


def test_one_key_switches_each_off():
    assert not any(e.fused for e in experts(backbone="est_eqv2", fused_kernels=False))
    kept = experts(backbone="est_eqv2", update={"recompute_experts": False})
    assert not any(e.recompute for e in kept)


@pytest.mark.parametrize("backbone", ["est_eqv2", "est", "est_gotennet", "est_equiformer"])
def test_one_key_makes_features_at_all_points(backbone):
    blocks = updates(backbone=backbone)
    assert blocks
    assert any(b.factored or b.fused_branch for b in blocks)
    plain = updates(backbone=backbone, update={"factored": False})
    assert not any(b.factored or b.fused_branch for b in plain)
