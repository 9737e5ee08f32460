"""The fused gated activation of steerable experts equals plain PyTorch."""

from __future__ import annotations

import pytest

from tests.nn.triton.programs import PRECISIONS, ROUNDING, errors_of

pytest.importorskip("triton", reason="the fused kernels need Triton")

CASES = ("odd", "scalars", "single", "wide", "model", "settings")
RESULTS = ("out", "gate", "scalars", "blocks", "alone")
PARAMETERS = ("weight_in", "bias_in", "weight_gate", "bias_gate", "weight_out", "bias_out")
#: Of sums in float32, and of one rounding to the nearest number of half precision.
ONCE = {"float32": 5e-6, "float16": 2.0**-11 + 5e-6, "bfloat16": 2.0**-8 + 5e-6}


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_kernels_equal_plain_pytorch(dtype: str):
    errors = errors_of("degrees_kernels", dtype)
    assert errors.pop("compiled") == errors.pop("no_nodes") == 0
    for case in CASES:
        for result in RESULTS:
            # The gate and its gradient are float32 in any case.
            bound = ONCE["float32" if result == "gate" else dtype]
            assert errors.pop(f"{case}_{result}") < bound, (case, result)
    assert set(errors) == {f"module_{name}" for name in ("out", "x", "gate", *PARAMETERS)}
    for name, error in errors.items():
        assert error < ROUNDING[dtype], name


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("hidden", [1, 12, 64, 256, 300, 2048])
def test_a_thread_makes_one_load_of_a_row(hidden: int, itemsize: int):
    from est_ocp.nn.triton.gated_degrees import WARP, DegreesLaunch

    options = DegreesLaunch(4).options(hidden, itemsize)
    assert options["PAIRS"] * options["BLOCK"] * itemsize == 4 * WARP * 16
    assert options["BLOCK"] * itemsize <= WARP * 16
    assert options["BLOCK"] < 2 * hidden
