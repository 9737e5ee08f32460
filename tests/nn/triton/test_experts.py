"""The fused spherical experts equal the plain module, forward and backward."""

from __future__ import annotations

import pytest

from est_ocp.nn.triton.support import experts_fit
from tests.nn.triton.programs import PRECISIONS, ROUNDING, errors_of

pytest.importorskip("triton", reason="the fused kernels need Triton")

EXACT = ("no_nodes", "compiled")


def test_kernels_equal_the_plain_module():
    errors = errors_of("experts_kernels", *PRECISIONS)
    for dtype in PRECISIONS:
        for name in EXACT:
            assert errors.pop(f"{dtype}_{name}") == 0, name
    expected = {
        f"{dtype}_{case}_{launch}{result}"
        for dtype in PRECISIONS
        for case in ("odd", "even", "single")
        for launch in ("", "module_", "small_")
        for result in ("out", "x", "gate", "weight_in", "bias_in", "weight_out")
    }
    assert expected == set(errors)
    for name, error in errors.items():
        assert error < ROUNDING[name.split("_")[0]], name


def test_wide_features_are_left_to_pytorch():
    assert experts_fit(256)
    assert not experts_fit(257)
