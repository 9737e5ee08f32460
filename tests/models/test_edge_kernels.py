"""One key switches the kernels of the hosts' messages off; conservative models never use them."""

from __future__ import annotations

import pytest

from est_ocp.nn.equiformer import DepthwiseTensorProduct
from tests.models.every_backbone import BACKBONES

EQUIFORMERS = [name for name in BACKBONES if "equiformer" in name]
GOTENNETS = [name for name in BACKBONES if "gotennet" in name]


def products(name: str, **kwargs) -> list[DepthwiseTensorProduct]:
    """Tensor products of a small backbone."""
    modules = BACKBONES[name](**kwargs).modules()
    return [m for m in modules if isinstance(m, DepthwiseTensorProduct)]


@pytest.mark.parametrize("name", EQUIFORMERS)
def test_equiformers(name):
    assert products(name)
    assert all(product.fused for product in products(name))
    assert not any(product.fused for product in products(name, fused_kernels=False))


@pytest.mark.parametrize("name", GOTENNETS)
def test_gotennets(name):
    def fuses(**kwargs) -> bool:
        return BACKBONES[name](**kwargs).fused_kernels

    assert fuses()
    assert not fuses(fused_kernels=False)
    assert not fuses(direct_forces=False, regress_forces=True)
