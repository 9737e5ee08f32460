"""Features of the nodes at the ends of edges."""

from __future__ import annotations

import torch


def gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows of ``x`` whose gradients are added up in at least float32.

    A node's gradient is a sum over its edges, which bfloat16 would round at every step. A compiled
    layer fuses the casts into its kernels. ``x[index]`` would in its gradient sort the edges on a
    GPU, for every tensor anew.

    Parameters
    ----------
    x : Tensor [N, ...]
    index : Tensor [E], int64

    Returns
    -------
    Tensor [E, ...]
        In the type of ``x``.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    return x.to(precise).index_select(0, index).to(x.dtype)
