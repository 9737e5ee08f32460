"""The fused kernels on the points of a sphere equal plain PyTorch, in full and half precision."""

from __future__ import annotations

import pytest

from tests.nn.triton.programs import PRECISIONS, ROUNDING, errors_of

pytest.importorskip("triton", reason="the fused kernels need Triton")


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_kernels_equal_plain_pytorch(dtype: str):
    errors = errors_of("points_kernels", dtype)
    for case in ("message_block", "few_rows_out", "many_points", "settings_64_2_16"):
        assert {case, f"{case}_gradient_of_scalars", f"{case}_gradient_of_x"} <= set(errors)
    assert max(errors.values()) < ROUNDING[dtype], errors


@pytest.mark.parametrize("points", [1, 16, 26, 50, 86, 110, 128, 194, 256, 434])
def test_blocks_of_points_hold_all_with_little_padding(points: int):
    from est_ocp.nn.triton.silu_on_points import point_blocks

    blocks = point_blocks(points, 64)
    assert all(size == 0 or (size >= 16 and size & (size - 1) == 0) for size in blocks)
    assert points <= sum(blocks) < points + 16 + points // 8
