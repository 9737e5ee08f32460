"""The fused kernels equal plain PyTorch, forward and backward, in full and half precision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the fused kernels need Triton")

OPERATIONS = ("to_frames", "from_frames")
#: TF32 products on a GPU round to 10 bits; the interpreter computes in float32.
ROUNDING = {
    "float32": 3e-3 if torch.cuda.is_available() else 1e-5,
    "float16": 3e-3,
    "bfloat16": 2e-2,
}
#: Triton's interpreter has no products of bfloat16.
HALF = "bfloat16" if torch.cuda.is_available() else "float16"


@pytest.mark.parametrize("dtype", ["float32", HALF])
def test_kernels_equal_plain_pytorch(dtype: str):
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kernels.py")), dtype],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors = {
        name: float(value)
        for name, value in (line.split() for line in done.stdout.splitlines() if " " in line)
    }
    expected = {f"{name}{end}" for name in OPERATIONS for end in ("", "_gradient")} | {"no_edges"}
    assert expected == set(errors)
    assert errors.pop("no_edges") == 0
    assert max(errors.values()) < ROUNDING[dtype], errors
