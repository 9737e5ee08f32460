"""Inputs shared by the tests of the sphere."""

from __future__ import annotations

import torch
from torch import Tensor


def random_points(number: int, seed: int = 0) -> Tensor:
    """Random unit vectors [number, 3], float64."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(number, 3, dtype=torch.float64, generator=generator)
    return vectors / vectors.norm(dim=-1, keepdim=True)
