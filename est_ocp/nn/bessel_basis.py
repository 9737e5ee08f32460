"""Spherical Bessel expansion of interatomic distances."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn.envelope import PolynomialEnvelope


class BesselBasis(nn.Module):
    """Spherical Bessel functions of order zero with trained frequencies and an envelope.

    ``b_k(d) = u(d) sqrt(2 / cutoff^3) sin(f_k d / cutoff) / (d / cutoff)``, at the start
    ``f_k = pi k``, with :class:`PolynomialEnvelope` ``u`` of exponent 5 (DimeNet, arXiv 2003.03123,
    equations 7 and 8, in GemNet's scaling). It is Equiformer's second basis on QM9, with 8
    functions. Computed in at least float32.

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
                f"a Bessel basis needs cutoff > 0 and num_basis >= 1; got cutoff={cutoff}, "
                f"num_basis={num_basis}"
            )
        self.cutoff = float(cutoff)
        self.num_basis = num_basis
        self.frequencies = nn.Parameter(torch.empty(num_basis))
        self.envelope = PolynomialEnvelope(cutoff, exponent=5)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the frequencies to multiples of pi."""
        with torch.no_grad():
            self.frequencies.copy_(math.pi * torch.arange(1, self.num_basis + 1))

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        """Expand ``distance`` [E] > 0 (Angstrom) to [E, num_basis]."""
        with torch.autocast(distance.device.type, enabled=False):
            distance = distance.to(self.frequencies.dtype)
            x = (distance / self.cutoff).unsqueeze(-1)
            factor = self.envelope(distance).unsqueeze(-1) * math.sqrt(2.0 / self.cutoff**3)
            return factor * torch.sin(self.frequencies * x) / x

    def extra_repr(self) -> str:
        return f"cutoff={self.cutoff}, num_basis={self.num_basis}"
