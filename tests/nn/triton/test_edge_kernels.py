"""The fused kernels on edges, and the attention that uses them, equal plain PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the fused kernels need Triton")

COMPARED = {"orders", "orders_1_gradient", "orders_2_gradient", "sum", "sum_gradient", "layout"}
#: Settings of a launch change no result; compared in float32.
LAUNCHES = {"launch_orders", "launch_orders_gradient", "launch_sum", "launch_sum_gradient"}
#: Relative to the largest value. TF32 products on a GPU round to 10 bits; the interpreter
#: computes in float32.
ROUNDING = {
    "float32": 3e-3 if torch.cuda.is_available() else 1e-5,
    "float16": 3e-3,
    "bfloat16": 2e-2,
}
#: A whole attention, which rounds in several places.
ATTENTION = 2e-2 if torch.cuda.is_available() else 1e-4
#: Bytes that the fused path keeps for the backward pass, over those of the plain one.
KEPT = 0.6
#: Triton's interpreter has no products of bfloat16.
HALF = "bfloat16" if torch.cuda.is_available() else "float16"


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


def test_kernels_equal_plain_pytorch():
    of_dtype: dict[str, dict[str, float]] = {}
    for name, value in run("edge_kernels", "float32", HALF):
        if name == "dtype":
            errors = of_dtype[value] = {}
        else:
            errors[name] = float(value)
    assert list(of_dtype) == ["float32", HALF]
    for dtype, errors in of_dtype.items():
        assert errors.pop("no_edges_0") == errors.pop("no_edges_4") == 0
        compared = {name.rstrip("_0123456789") for name in errors}
        assert compared == (COMPARED | LAUNCHES if dtype == "float32" else COMPARED)
        assert max(errors.values()) < ROUNDING[dtype], errors


def test_attention_equals_its_plain_path():
    errors = {name: float(value) for name, value in run("edge_attention")}
    # Radial weights and the convolution's inputs are computed again in the backward pass.
    assert errors.pop("kept") < KEPT
    # Compiled, too, the kernels get the padded rotations themselves: three calls forward, with
    # that of the recomputation, and two backward.
    assert errors.pop("calls_eager") == errors.pop("calls_compiled") == 5
    assert errors.pop("copies_eager") == errors.pop("copies_compiled") == 0
    assert set(errors) == {"eager", "no_edges", "checkpoint", "compiled", "forces"}
    assert max(errors.values()) < ATTENTION, errors
