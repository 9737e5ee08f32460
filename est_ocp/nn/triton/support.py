"""When the fused kernels can run, and in what precision."""

from __future__ import annotations

import importlib.util

import torch

#: Triton's matrix products want blocks of at least this many rows and columns.
SMALLEST_BLOCK = 16

#: Bytes that the two matrices of the fused S2 activation may take of a GPU's shared memory, where
#: blocks of features have to fit beside them; the smallest of current GPUs have 99 KiB a block.
MATRIX_BYTES = 56 * 1024


def can_fuse(x: torch.Tensor) -> bool:
    """Whether the fused kernels apply to a tensor.

    They need Triton and a CUDA tensor in half precision, or in float32 where TF32 matrix products
    are allowed: their products run on tensor cores.
    """
    if not x.is_cuda or importlib.util.find_spec("triton") is None:
        return False
    if x.dtype in (torch.bfloat16, torch.float16):
        return True
    return x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32


def block_size(size: int) -> int:
    """Smallest power of two that holds `size` and that Triton's products accept."""
    return max(SMALLEST_BLOCK, 1 << (size - 1).bit_length())


def matrix_bytes(rows: int, rows_out: int, points: int) -> int:
    """Bytes of the fused S2 activation's two matrices, in float32.

    Parameters
    ----------
    rows, rows_out : int
        Coefficients of the input and of the result.
    points : int
        Points on the sphere.
    """
    padded = -(-points // SMALLEST_BLOCK) * SMALLEST_BLOCK
    return 4 * (block_size(rows) + block_size(rows_out)) * padded


def matrices_fit(rows: int, rows_out: int, points: int) -> bool:
    """Whether the fused S2 activation can hold its two matrices, see :func:`matrix_bytes`."""
    return matrix_bytes(rows, rows_out, points) <= MATRIX_BYTES


def experts_fit(channels: int) -> bool:
    """Whether the fused experts can hold rows of so many channels in registers."""
    return channels <= 256
