"""Calls whose intermediate results are computed again in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> torch.Tensor:
    """Return ``function(*arguments)``, keeping the arguments alone for the backward pass.

    Parameters
    ----------
    function : callable
        Without random numbers.
    *arguments : Tensor

    Returns
    -------
    Tensor
    """
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
