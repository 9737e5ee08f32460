"""Gaussian expansion of interatomic distances."""

from __future__ import annotations

import torch

from est_ocp.errors import ConfigError
from est_ocp.sphere import ConstantBuffers


class GaussianBasis(ConstantBuffers):
    """Expand a distance in equally spaced Gaussians on [0, cutoff].

    ``b_k(d) = exp(-(d - c_k)^2 / (2 (width * spacing)^2))`` with centres ``c_k`` from 0 to
    ``cutoff`` and ``spacing`` between neighbours. Computed in at least float32.

    Parameters
    ----------
    cutoff : float
        Largest centre, Angstrom.
    num_basis : int
        Number of Gaussians, at least 2.
    width : float
        Standard deviation in units of the spacing.

    Raises
    ------
    ConfigError
        If the cutoff or width is not positive or fewer than two Gaussians are asked for.
    """

    def __init__(self, cutoff: float, num_basis: int, width: float = 2.0) -> None:
        super().__init__()
        if cutoff <= 0 or width <= 0 or num_basis < 2:
            raise ConfigError(
                "a Gaussian basis needs cutoff > 0, width > 0 and num_basis >= 2; got "
                f"cutoff={cutoff}, width={width}, num_basis={num_basis}"
            )
        self.cutoff = float(cutoff)
        self.num_basis = num_basis
        self.width = float(width)
        self.coefficient = -0.5 * ((num_basis - 1) / (self.width * self.cutoff)) ** 2
        centres = torch.linspace(0.0, self.cutoff, num_basis, dtype=torch.float64)
        self.register_constant("centres", centres)

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        """Expand ``distance`` [E] (Angstrom) to [E, num_basis]."""
        with torch.autocast(distance.device.type, enabled=False):
            difference = distance.to(self.centres.dtype).unsqueeze(-1) - self.centres
            return torch.exp(self.coefficient * difference.square())

    def extra_repr(self) -> str:
        return f"cutoff={self.cutoff}, num_basis={self.num_basis}, width={self.width}"
