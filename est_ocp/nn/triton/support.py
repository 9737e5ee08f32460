"""When the fused kernels can run, and in what precision."""

from __future__ import annotations

import importlib.util

import torch

#: Looked up once: a compiler that traces a layer cannot follow the search for a package.
HAS_TRITON = importlib.util.find_spec("triton") is not None

#: Triton's matrix products want blocks of at least this many rows and columns.
SMALLEST_BLOCK = 16

#: What every current GPU has of it (99 KiB); A100s have 163, H100s 227.
LEAST_SHARED_MEMORY = 99 * 1024

#: Bytes that the two matrices of the fused S2 activation may take of a GPU's shared memory, where
#: blocks of features have to fit beside them; the smallest of current GPUs have 99 KiB a block.
MATRIX_BYTES = 56 * 1024

#: For features kept as products: which part of the shared memory their matrices may take, of which
#: the backward pass needs two copies beside other blocks; most points; and points times channels.
FUNCTION_PART, MOST_POINTS, FUNCTION_VALUES = 3, 128, 128 * 128


def can_fuse(x: torch.Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the fused kernels apply to a tensor, or to what it is cast to.

    They need Triton and a CUDA tensor in half precision, or in float32 where TF32 matrix products
    are allowed: their products run on tensor cores.
    """
    if not x.is_cuda or not HAS_TRITON:
        return False
    dtype = x.dtype if dtype is None else dtype
    if dtype in (torch.bfloat16, torch.float16):
        return True
    return dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32


@torch.compiler.assume_constant_result
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program on a GPU can have; the fewest on a CPU."""
    if device.type != "cuda":
        return LEAST_SHARED_MEMORY
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


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


def functions_fit(
    num_points: int, num_in: int, num_own: int, channels: int, dtype: torch.dtype, shared: int
) -> bool:
    """Whether the kernels for features kept as products fit on a GPU.

    Parameters
    ----------
    num_points, num_in, num_own : int
        Points, harmonics, and functions of a node's own.
    channels : int
        Of the features.
    dtype : torch.dtype
        In which the kernels run.
    shared : int
        Bytes of shared memory, see :func:`shared_memory`.
    """
    points = block_size(num_points)
    matrices = points * (2 * block_size(num_in) + block_size(num_own)) * dtype.itemsize
    return (
        FUNCTION_PART * matrices <= shared
        and points <= MOST_POINTS
        and points * block_size(channels) <= FUNCTION_VALUES
    )
