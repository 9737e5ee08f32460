"""The fused spherical experts equal the plain module, forward and backward."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from est_ocp.nn.triton.support import experts_fit

pytest.importorskip("triton", reason="the fused kernels need Triton")

#: Largest error of results and gradients over their largest value. TF32 products on a GPU round
#: to 10 bits; the interpreter computes in float32.
ROUNDING = {
    "float32": 3e-3 if torch.cuda.is_available() else 1e-5,
    "float16": 3e-3,
    "bfloat16": 2e-2,
}
#: Triton's interpreter has no products of bfloat16.
PRECISIONS = ("float32", "bfloat16" if torch.cuda.is_available() else "float16")
EXACT = ("no_nodes", "compiled")


def test_kernels_equal_the_plain_module():
    program = str(Path(__file__).with_name("experts_kernels.py"))
    done = subprocess.run(
        [sys.executable, program, *PRECISIONS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    errors = {
        name: float(value)
        for name, value in (line.split() for line in done.stdout.splitlines() if " " in line)
    }
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
