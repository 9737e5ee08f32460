"""The fused kernels on features kept as products equal plain PyTorch, alone and in whole blocks."""

from __future__ import annotations

import pytest
import torch

from est_ocp.nn.triton.support import LEAST_SHARED_MEMORY, functions_fit, shared_memory
from tests.nn.triton.programs import AS_GOOD, PRECISIONS, ROUNDING, SHARED_MEMORY, errors_of

pytest.importorskip("triton", reason="the fused kernels need Triton")

SILU, ATTENTION, NORM = ("s2ef", "qm9", "heads"), ("s2ef", "qm9", "heads"), ("s2ef", "qm9")
#: The attention's kernels multiply several times in a row.
PRODUCTS = 2.0
#: A block rounds in several places.
BLOCK = 2.0


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_kernels_equal_plain_pytorch(dtype: str):
    errors = errors_of("functions_kernels", dtype)
    gradients = {"": 3, "attention_": 1, "norm_": 6, "norm_harmonics": 3}
    cases = {"": SILU, "attention_": ATTENTION, "norm_": NORM, "norm_harmonics": ("",)}
    expected = {
        f"{kind}{case}{end}"
        for kind, names in cases.items()
        for case in names
        for end in ("", *(f"_gradient_{i}" for i in range(gradients[kind])))
    }
    assert set(errors) == expected
    for name, error in errors.items():
        several = name.startswith("attention_")
        assert error < (PRODUCTS if several else 1.0) * ROUNDING[dtype], name


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_blocks_equal_plain_ones(dtype: str):
    errors = errors_of("update_kernels", dtype)
    fused = {name: error for name, error in errors.items() if not name.startswith("plain.")}
    assert len({name.split(".")[0] for name in fused}) == 9
    for name, error in fused.items():
        assert error < BLOCK * ROUNDING[dtype], name
        # Where a plain gradient happens to be exact there is nothing to compare with.
        assert error < AS_GOOD[dtype] * errors[f"plain.{name}"] + 0.1 * ROUNDING[dtype], name


def test_large_spheres_are_left_to_pytorch():
    half, single = torch.bfloat16, torch.float32
    small, large = (1024 * SHARED_MEMORY[capability] for capability in (86, 80))
    for shared in (small, large):
        assert functions_fit(128, 25, 24, 128, half, shared)
        assert functions_fit(64, 9, 8, 256, single, shared)
        assert not functions_fit(146, 25, 24, 128, half, shared)
        assert not functions_fit(128, 9, 8, 256, half, shared)
    assert functions_fit(128, 25, 24, 128, single, large)
    assert not functions_fit(128, 25, 24, 128, single, small)


def test_compiled_layers_know_the_shared_memory():
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x * shared_memory(x.device)

    x = torch.ones(3)
    compiled = torch.compile(scaled, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), x * LEAST_SHARED_MEMORY)
