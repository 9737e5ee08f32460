"""The fused kernels equal plain PyTorch, forward and backward, in full and half precision."""

from __future__ import annotations

import pytest

from tests.nn.triton.programs import PRECISIONS, ROUNDING, errors_of

pytest.importorskip("triton", reason="the fused kernels need Triton")

OPERATIONS = ("to_frames", "from_frames")


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_kernels_equal_plain_pytorch(dtype: str):
    errors = errors_of("kernels", dtype)
    expected = {f"{name}{end}" for name in OPERATIONS for end in ("", "_gradient")} | {"no_edges"}
    assert expected == set(errors)
    assert errors.pop("no_edges") == 0
    assert max(errors.values()) < ROUNDING[dtype], errors
