"""One key switches a model's kernels off; conservative models never use them."""

from __future__ import annotations

import pytest

from est_ocp.nn import SteerableExperts
from est_ocp.nn.equiformer import DepthwiseTensorProduct
from tests.models.every_backbone import BACKBONES

EQUIFORMERS = [name for name in BACKBONES if "equiformer" in name]
#: Backbones that keep the setting, as conservative forces switch it off.
OTHERS = [name for name in BACKBONES if "gotennet" in name or name == "est"]


def products(name: str, **kwargs) -> list[DepthwiseTensorProduct]:
    """Tensor products of a small backbone."""
    modules = BACKBONES[name](**kwargs).modules()
    return [m for m in modules if isinstance(m, DepthwiseTensorProduct)]


@pytest.mark.parametrize("name", EQUIFORMERS)
def test_equiformers(name):
    assert products(name)
    assert all(product.fused for product in products(name))
    assert not any(product.fused for product in products(name, fused_kernels=False))


@pytest.mark.parametrize("name", OTHERS)
def test_others(name):
    def fuses(**kwargs) -> bool:
        return BACKBONES[name](**kwargs).fused_kernels

    assert fuses()
    assert not fuses(fused_kernels=False)
    assert not fuses(direct_forces=False, regress_forces=True)


def test_blocks_of_est():
    def blocks(**kwargs) -> list[bool]:
        made = BACKBONES["est"](**kwargs).blocks
        experts = [m for m in made.modules() if isinstance(m, SteerableExperts)]
        assert len(experts) == 2 * len(made)
        uses = [use for b in made for use in (b.message.fused, b.update.fused_branch)]
        return uses + [m.fused for m in experts]

    assert all(blocks())
    assert not any(blocks(fused_kernels=False))
    assert not any(blocks(direct_forces=False, regress_forces=True))
