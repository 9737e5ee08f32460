"""A function of the distance that fades to zero at the cutoff."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.errors import ConfigError


class PolynomialEnvelope(nn.Module):
    """Smooth step from 1 at distance 0 to 0 at the cutoff and beyond.

    With ``d = distance / cutoff`` and ``p = exponent`` the polynomial of DimeNet (arXiv
    2003.03123, equation 8),

    ``u(d) = 1 - (p+1)(p+2)/2 d^p + p(p+2) d^(p+1) - p(p+1)/2 d^(p+2)``,

    the lowest one that is 1 at 0 up to order ``p`` and has value, first and second derivative
    zero at 1. It is evaluated as ``(1 - d)^3 sum_(k<p) (k+1)(k+2)/2 d^k``, which loses no digits
    where the terms of the sum above cancel and is never negative.

    Parameters
    ----------
    cutoff : float
        Angstrom.
    exponent : int
        ``p``, at least 1: the larger, the later the step.

    Raises
    ------
    ConfigError
        If the cutoff is not positive or the exponent is below 1.
    """

    def __init__(self, cutoff: float, exponent: int = 5) -> None:
        super().__init__()
        if cutoff <= 0 or exponent < 1:
            raise ConfigError(
                f"an envelope needs cutoff > 0 and exponent >= 1; got cutoff={cutoff}, "
                f"exponent={exponent}"
            )
        self.cutoff = float(cutoff)
        self.exponent = exponent

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        """Envelope [E] of ``distance`` [E] (Angstrom), in its type and at least float32."""
        with torch.autocast(distance.device.type, enabled=False):
            distance = distance.to(torch.promote_types(distance.dtype, torch.float32))
            d = (distance / self.cutoff).clamp(max=1.0)
            total = torch.zeros_like(d)
            for k in reversed(range(self.exponent)):
                total = total * d + (k + 1) * (k + 2) / 2
            rest = 1.0 - d
            return rest * rest * rest * total

    def extra_repr(self) -> str:
        return f"cutoff={self.cutoff}, exponent={self.exponent}"
