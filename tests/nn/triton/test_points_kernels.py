"""The fused kernels on the points of a sphere equal plain PyTorch, in full and half precision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the fused kernels need Triton")

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
        [sys.executable, str(Path(__file__).with_name("points_kernels.py")), dtype],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors = {
        name: float(value)
        for name, value in (line.split() for line in done.stdout.splitlines() if " " in line)
    }
    for case in ("message_block", "few_rows_out", "many_points", "settings_64_2_16"):
        assert {case, f"{case}_gradient_of_scalars", f"{case}_gradient_of_x"} <= set(errors)
    assert max(errors.values()) < ROUNDING[dtype], errors


@pytest.mark.parametrize("points", [1, 16, 26, 50, 86, 110, 128, 194, 256, 434])
def test_blocks_of_points_hold_all_with_little_padding(points: int):
    from est_ocp.nn.triton.silu_on_points import point_blocks

    blocks = point_blocks(points, 64)
    assert all(size == 0 or (size >= 16 and size & (size - 1) == 0) for size in blocks)
    assert points <= sum(blocks) < points + 16 + points // 8
