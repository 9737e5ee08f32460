"""How the kernels on edges are launched, and how they find the rotations of edges."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from est_ocp.nn.triton.support import SMALLEST_BLOCK, block_size

#: Bytes of the widest load of a thread.
LOAD_BYTES = 16


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


class Launches(NamedTuple):
    """Settings of a kernel in half precision and in float32."""

    half: Launch
    single: Launch

    def of(self, x: Tensor) -> Launch:
        """Settings for the type of ``x``."""
        return self.half if x.element_size() == 2 else self.single


def aligned_columns(columns: int, itemsize: int) -> int:
    """Elements of ``itemsize`` bytes that fill whole loads and hold so many columns."""
    lanes = LOAD_BYTES // itemsize
    return -(-columns // lanes) * lanes


def with_contiguous_rows(wigner: Tensor) -> Tensor:
    """The rotations themselves where the kernels can read them as they lie, else a copy."""
    return wigner if wigner.stride(2) == 1 else wigner.contiguous()


def dense_rows(x: Tensor) -> Tensor:
    """Rows of ``x`` [N, R, C] side by side; nodes or edges may lie apart, as in a slice of rows."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def rotation_layout(wigner: Tensor) -> dict[str, int]:
    """Where the kernels find the rotations ``wigner`` [E, R, I], and how much of them they read.

    Returns
    -------
    dict
        ``EDGE_STRIDE`` and ``ROW_STRIDE``: elements from one edge, and row, to the next.
        ``COLUMNS``: elements to read of a row. More than the I coefficients where rows are padded
        to whole loads (:func:`est_ocp.nn.edge_rotation.align_rotations`): features are zero
        there.
    """
    num_edges, rows, columns = wigner.shape
    edge_stride, row_stride, _ = wigner.stride()
    padded = aligned_columns(columns, wigner.element_size())
    last_row = (num_edges - 1) * edge_stride + (rows - 1) * row_stride
    end = wigner.storage_offset() + last_row + padded
    # A tensor that only has the strides of a padded one ends with the last row's coefficients.
    exists = end * wigner.element_size() <= wigner.untyped_storage().nbytes()
    return {
        "EDGE_STRIDE": edge_stride,
        "ROW_STRIDE": row_stride,
        "COLUMNS": padded if row_stride == padded and exists else columns,
    }
