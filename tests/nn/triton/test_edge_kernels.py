"""The fused kernels on edges, and the attention that uses them, equal plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from tests.nn.triton.programs import PRECISIONS, ROUNDING, errors_of, run

pytest.importorskip("triton", reason="the fused kernels need Triton")

COMPARED = {"orders", "orders_1_gradient", "orders_2_gradient", "sum", "sum_gradient", "layout"}
#: Settings of a launch change no result; compared in float32.
LAUNCHES = {"launch_orders", "launch_orders_gradient", "launch_sum", "launch_sum_gradient"}
#: A whole attention, which rounds in several places.
ATTENTION = 2e-2 if torch.cuda.is_available() else 1e-4
#: Bytes that the fused path keeps for the backward pass, over those of the plain one.
KEPT = 0.6


def test_kernels_equal_plain_pytorch():
    of_dtype: dict[str, dict[str, float]] = {}
    for name, value in run("edge_kernels", *PRECISIONS):
        if name == "dtype":
            errors = of_dtype[value] = {}
        else:
            errors[name] = float(value)
    assert tuple(of_dtype) == PRECISIONS
    for dtype, errors in of_dtype.items():
        assert errors.pop("no_edges_0") == errors.pop("no_edges_4") == 0
        compared = {name.rstrip("_0123456789") for name in errors}
        assert compared == (COMPARED | LAUNCHES if dtype == "float32" else COMPARED)
        assert max(errors.values()) < ROUNDING[dtype], errors


def test_attention_equals_its_plain_path():
    errors = errors_of("edge_attention")
    # Radial weights and the convolution's inputs are computed again in the backward pass.
    assert errors.pop("kept") < KEPT
    # Compiled, too, the kernels get the padded rotations themselves: three calls forward, with
    # that of the recomputation, and two backward.
    assert errors.pop("calls_eager") == errors.pop("calls_compiled") == 5
    assert errors.pop("copies_eager") == errors.pop("copies_compiled") == 0
    assert set(errors) == {"eager", "no_edges", "checkpoint", "compiled", "forces"}
    assert max(errors.values()) < ATTENTION, errors
