"""Functions of the distance: cosine cutoff and exponential-normal basis."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.sphere import ConstantBuffers


class CosineCutoff(nn.Module):
    """``(1 + cos(pi d / cutoff)) / 2`` up to the cutoff, zero beyond.

    Value and first derivative vanish at the cutoff.

    Parameters
    ----------
    cutoff : float
        Angstrom.

    Raises
    ------
    ConfigError
        If the cutoff is not positive.
    """

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        if cutoff <= 0:
            raise ConfigError(f"the cutoff must be positive (Angstrom), got {cutoff}")
        self.cutoff = float(cutoff)

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        """Factor [E] of ``distance`` [E] (Angstrom), in its type and at least float32."""
        with torch.autocast(distance.device.type, enabled=False):
            distance = distance.to(torch.promote_types(distance.dtype, torch.float32))
            rest = 1.0 - (distance / self.cutoff).clamp(max=1.0)
            # The same function; written so, it and its derivative are exactly zero at the cutoff.
            return torch.sin(0.5 * math.pi * rest).square()

    def extra_repr(self) -> str:
        return f"cutoff={self.cutoff}"


class ExpNormalBasis(ConstantBuffers):
    """Gaussians of ``exp(-5 d / cutoff)``, times the cosine cutoff (PhysNet, arXiv 1902.08408).

    Centres are equally spaced from ``exp(-cutoff)`` (cutoff in Angstrom, as published) to 1; all
    widths are equal. Computed in at least float32.

    Parameters
    ----------
    cutoff : float
        Angstrom.
    num_basis : int
        Number of Gaussians, at least 2.

    Raises
    ------
    ConfigError
        If the cutoff is not positive or fewer than two Gaussians are asked for.
    """

    def __init__(self, cutoff: float, num_basis: int) -> None:
        super().__init__()
        if num_basis < 2:
            raise ConfigError(f"an exponential-normal basis needs num_basis >= 2, got {num_basis}")
        self.fade = CosineCutoff(cutoff)
        self.num_basis = num_basis
        self.decay = 5.0 / self.fade.cutoff
        start = math.exp(-self.fade.cutoff)
        self.sharpness = (2.0 / num_basis * (1.0 - start)) ** -2
        centres = torch.linspace(start, 1.0, num_basis, dtype=torch.float64)
        self.register_constant("centres", centres)

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        """Expand ``distance`` [E] (Angstrom) to [E, num_basis]."""
        with torch.autocast(distance.device.type, enabled=False):
            distance = distance.to(self.centres.dtype).unsqueeze(-1)
            difference = torch.exp(-self.decay * distance) - self.centres
            return self.fade(distance) * torch.exp(-self.sharpness * difference.square())

    def extra_repr(self) -> str:
        return f"num_basis={self.num_basis}"
