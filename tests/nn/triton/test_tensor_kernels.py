"""Fused parts of GotenNet's attention equal plain ones, in full and half precision."""

from __future__ import annotations

import pytest

from tests.nn.triton.programs import PRECISIONS, ROUNDING, errors_of

pytest.importorskip("triton", reason="the fused kernels need Triton")


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_kernels_equal_plain_pytorch(dtype: str):
    errors = errors_of("tensor_kernels", dtype)
    # A result and five gradients, a result and two gradients, no edges, a whole layer; for both
    # degrees.
    assert len(errors) == 22
    assert all(errors.pop(f"no_edges_{lmax}") == 0 for lmax in (1, 2))
    assert max(errors.values()) < ROUNDING[dtype], errors
