"""Layout of irreps of unequal widths."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3

from est_ocp.errors import ConfigError
from est_ocp.nn.equiformer import IrrepsLayout
from tests.nn.equiformer.features import IRREPS, flat


def test_blocks_are_e3nns_slices():
    x = flat(IRREPS, 3)
    for (mul, ir), part, block in zip(
        o3.Irreps(str(IRREPS)), o3.Irreps(str(IRREPS)).slices(), IRREPS.split(x), strict=True
    ):
        torch.testing.assert_close(block, x[:, part].reshape(3, mul, ir.dim).transpose(1, 2))
    assert torch.equal(IRREPS.join(IRREPS.split(x)), x)
    assert IRREPS.dim == o3.Irreps(str(IRREPS)).dim == x.shape[1]


def test_parts_and_multiples():
    assert IRREPS.keep([2, 0]) == IrrepsLayout("6x0e+2x2e")
    assert IRREPS.times(3) == IrrepsLayout("18x0e+12x1e+6x2e")
    assert IrrepsLayout.uniform(4, 1) == IrrepsLayout("4x0e+4x1e")
    assert IrrepsLayout("4x0e+2x0e+1x1e") == IrrepsLayout("6x0e+1x1e")
    assert IRREPS.width(1) == 4
    assert IRREPS.width(3) == 0


@pytest.mark.parametrize("text", ["", "3x1o", "2x1e+3x0e", "2x0e+1x1e+2x0e", "0x0e", "many", "3"])
def test_wrong_irreps_are_refused(text):
    with pytest.raises(ConfigError, match="256x0e"):
        IrrepsLayout(text)
