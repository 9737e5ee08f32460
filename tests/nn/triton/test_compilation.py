"""Kernels compile for GPUs that are not here, and fit their shared memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import est_ocp.nn
from tests.nn.triton.programs import run

pytest.importorskip("triton", reason="the fused kernels need Triton")

#: Shared memory of a program, KiB: A100, A10 and RTX 3090, H100.
SHARED_MEMORY = {80: 163, 86: 99, 90: 227}
KERNELS = Path(est_ocp.nn.__file__).parent / "triton"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_kernels_of_all_models_compile_and_fit(capability: int, dtype: str):
    found = run("compiled_kernels", str(capability), dtype)
    for name, shared in found:
        assert int(shared) <= 1024 * SHARED_MEMORY[capability], name
    modules = {name.split(".")[1] for name, _ in found}
    with_kernels = {
        file.stem for file in KERNELS.glob("*.py") if re.search(r"custom_op\(", file.read_text())
    }
    assert modules == with_kernels
