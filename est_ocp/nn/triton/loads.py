"""Loads of small matrices in kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_matrix(ptr, rows, columns, row_stride, column_stride, num_rows, num_columns):
    """Elements ``rows`` times ``columns`` of a matrix, filled up with zeros."""
    return tl.load(
        ptr + rows[:, None] * row_stride + columns[None, :] * column_stride,
        mask=(rows < num_rows)[:, None] & (columns < num_columns)[None, :],
        other=0.0,
    )
