"""EST message blocks with the fused kernel equal plain ones."""

from __future__ import annotations

import pytest

from tests.nn.triton.programs import AS_GOOD, PRECISIONS, ROUNDING, errors_of

pytest.importorskip("triton", reason="the fused kernels need Triton")

#: A block rounds in several places.
BLOCK = 4.0


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_blocks_equal_plain_ones(dtype: str):
    errors = errors_of("message_kernels", dtype)
    fused = {name: error for name, error in errors.items() if not name.startswith("plain.")}
    assert len({name.split(".")[0] for name in fused}) == 5
    for name, error in fused.items():
        assert error < BLOCK * ROUNDING[dtype], name
        # Where a plain gradient happens to be exact there is nothing to compare with.
        assert error < AS_GOOD[dtype] * errors[f"plain.{name}"] + 0.1 * ROUNDING[dtype], name
