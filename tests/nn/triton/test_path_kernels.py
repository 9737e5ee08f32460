"""Fused tensor products equal plain ones, forward and backward, in full and half precision."""

from __future__ import annotations

import pytest

from tests.nn.triton.programs import PRECISIONS, ROUNDING, errors_of

pytest.importorskip("triton", reason="the fused kernels need Triton")


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_kernels_equal_plain_pytorch(dtype: str):
    errors = errors_of("path_kernels", dtype)
    # One to three results, gradients of features and weights, and no edges, with and without
    # weights; two whole attentions.
    assert len(errors) == 29
    assert max(errors.values()) < ROUNDING[dtype], errors
    assert all(error == 0 for name, error in errors.items() if name.endswith("no_edges"))
