"""What the kernels of GotenNet's attention share: rows of channels, launches, degrees."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_row(ptr, mask):
    """Channels in float32, zero where masked."""
    return tl.load(ptr, mask=mask, other=0.0).to(tl.float32)


def launch_settings(channels: int) -> tuple[int, dict[str, int]]:
    """Blocks of channels, and how the kernels are launched."""
    block = min(128, triton.next_power_of_2(channels))
    return triton.cdiv(channels, block), {"BLOCK_C": block, "num_warps": 2 if block > 64 else 1}


def degree_of(rows: int) -> int:
    """Degree L of features with ``(L+1)**2`` rows, 1 or 2: the kernels know no others."""
    return {4: 1, 9: 2}[rows]
