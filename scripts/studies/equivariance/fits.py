"""How the error follows from the unevenness of the points: fits on logarithmic axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from equivariance.points import PointSet, smooth_discrepancies

#: Errors below this are rounding.
FLOOR = 1e-13
#: Kernels that are tried; the coefficients of their functions fall like ``r^(l/2)``.
RATIOS = torch.arange(0.02, 0.90, 0.02, dtype=torch.float64)


@dataclass(frozen=True)
class PowerLaw:
    """``error = factor * measure^exponent``.

    Attributes
    ----------
    factor, exponent : float
        By least squares of logarithms, or the exponent as given.
    r2 : float
        Share of the variance of the logarithms that the law explains.
    bound : float
        Smallest factor for which ``bound * measure^exponent`` is above all errors.
    count : int
        Points of the fit.
    """

    factor: float
    exponent: float
    r2: float
    bound: float
    count: int


def power_law(
    measure: Sequence[float], error: Sequence[float], exponent: float | None = None
) -> PowerLaw:
    """Fit a power law to positive numbers; its exponent too, unless it is given."""
    x, y = np.log(np.asarray(measure)), np.log(np.asarray(error))
    if exponent is None:
        exponent = np.polyfit(x, y, 1)[0]
    constant = (y - exponent * x).mean()
    residual = y - exponent * x - constant
    r2 = 1.0 - residual.var() / y.var()
    bound = constant + residual.max()
    return PowerLaw(
        float(np.exp(constant)), float(exponent), float(r2), float(np.exp(bound)), len(x)
    )


def exponential_law(degree: Sequence[float], error: Sequence[float]) -> PowerLaw:
    """Fit ``error = factor * 10^(exponent * degree)``, as a :class:`PowerLaw` of ``10^degree``."""
    return power_law(10.0 ** np.asarray(degree, dtype=float), error)


def best_kernel(sets: Sequence[PointSet], error: Sequence[float]) -> tuple[float, PowerLaw]:
    """The kernel to whose discrepancies the errors are proportional most closely, and its law.

    The exponent is one, as in the inequality that the discrepancy belongs to: the integration
    error of a function is at most its norm times the discrepancy.

    Returns
    -------
    ratio : float
        ``r`` of :func:`equivariance.points.smooth_discrepancies`.
    law : PowerLaw
    """
    table = torch.stack([smooth_discrepancies(points.softmax_rule(), RATIOS) for points in sets])
    laws = [power_law(column.tolist(), error, exponent=1.0) for column in table.T]
    best = int(np.argmax([law.r2 for law in laws]))
    return RATIOS[best].item(), laws[best]
