"""How the kernels on edges are launched."""

from __future__ import annotations

from typing import NamedTuple

from est_ocp.nn.triton.support import SMALLEST_BLOCK, block_size


class Launch(NamedTuple):
    """Settings of a kernel that change its speed and not its result.

    Attributes
    ----------
    num_warps : int
        Warps of a program.
    num_stages : int
        Iterations of a loop whose loads are in flight at the same time.
    row_bytes : int
        Bytes that a block of channels takes in memory: rows of float32 have half as many
        channels a block as rows of half precision.
    edges : int
        Edges of a program, for kernels that go through the edges in order.
    """

    num_warps: int = 4
    num_stages: int = 3
    row_bytes: int = 256
    edges: int = 1

    def channel_block(self, channels: int, itemsize: int) -> int:
        """Channels of a program, for elements of ``itemsize`` bytes."""
        return min(max(SMALLEST_BLOCK, self.row_bytes // itemsize), block_size(channels))
