"""Kernels compile for GPUs that are not here, and fit their shared memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import est_ocp.nn
from tests.nn.triton.programs import SHARED_MEMORY, run

pytest.importorskip("triton", reason="the fused kernels need Triton")

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
