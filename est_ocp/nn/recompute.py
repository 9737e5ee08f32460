"""Calls whose intermediate results are computed again in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``function(*arguments)``, keeping the arguments alone for the backward pass.

    Parameters
    ----------
    function : callable
        Of tensors, without random numbers.
    *arguments
        Tensors, or containers of tensors that need no gradient.
    """
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
