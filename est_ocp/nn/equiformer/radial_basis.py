"""Gaussian basis with trained centres and widths."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.errors import ConfigError


class LearnableGaussianBasis(nn.Module):
    """Gaussian densities of the distance in units of the cutoff.

    ``b_k(d) = N(s d / cutoff + t; mean_k, |std_k| + 1e-5)`` with trained scale ``s``, shift
    ``t``, means and standard deviations (Equiformer on OC20). At the start the means are uniform
    in [0, 1] and the deviations in [1/num_basis, 1]. Computed in at least float32.

    Parameters
    ----------
    cutoff : float
        Angstrom.
    num_basis : int
    """

    def __init__(self, cutoff: float, num_basis: int) -> None:
        super().__init__()
        if cutoff <= 0 or num_basis < 1:
            raise ConfigError(
                f"a Gaussian basis needs cutoff > 0 and num_basis >= 1; got cutoff={cutoff}, "
                f"num_basis={num_basis}"
            )
        self.cutoff = float(cutoff)
        self.num_basis = num_basis
        self.mean = nn.Parameter(torch.empty(num_basis).uniform_(0.0, 1.0))
        self.std = nn.Parameter(torch.empty(num_basis).uniform_(1.0 / num_basis, 1.0))
        self.scale = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        """Expand ``distance`` [E] (Angstrom) to [E, num_basis]."""
        with torch.autocast(distance.device.type, enabled=False):
            x = distance.to(self.mean.dtype).unsqueeze(-1) / self.cutoff
            std = self.std.abs() + 1e-5
            z = (self.scale * x + self.shift - self.mean) / std
            return torch.exp(-0.5 * z.square()) / (math.sqrt(2.0 * math.pi) * std)

    def extra_repr(self) -> str:
        return f"cutoff={self.cutoff}, num_basis={self.num_basis}"
