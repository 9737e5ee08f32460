"""What the tests of kernels share: they run programs, which choose Triton's interpreter first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

#: Largest error over the largest value. TF32 products on a GPU round to 10 bits; the interpreter
#: computes in float32.
ROUNDING = {
    "float32": 3e-3 if torch.cuda.is_available() else 1e-5,
    "float16": 3e-3,
    "bfloat16": 2e-2,
}
#: Error of a block with kernels over that of the same block in plain PyTorch. In half precision
#: both round about as often; in TF32 kernels also multiply where the plain block adds in float32.
AS_GOOD = {"float32": 6.0, "float16": 3.0, "bfloat16": 3.0}
#: Triton's interpreter has no products of bfloat16.
HALF = "bfloat16" if torch.cuda.is_available() else "float16"
PRECISIONS = ("float32", HALF)
#: Shared memory of a program, KiB: A100, A10 and RTX 3090, H100.
SHARED_MEMORY = {80: 163, 86: 99, 90: 227}


def run(program: str, *arguments: str) -> list[list[str]]:
    """Run a program of this folder; the pairs of words that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.nn.triton.{program}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return [line for line in lines if len(line) == 2]


def errors_of(program: str, *arguments: str) -> dict[str, float]:
    """Run a program of this folder; the errors that it prints, by name."""
    return {name: float(value) for name, value in run(program, *arguments)}
