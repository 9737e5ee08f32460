"""Legendre recursions: harmonics of any degree, and the energy that spherical designs minimise.

The recursions are polynomials in the Cartesian components, so they are differentiable
everywhere on the sphere, the poles included, and have no upper degree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def legendre_polynomials(x: Tensor, lmax: int) -> Tensor:
    """Legendre polynomials P_0 .. P_lmax.

    Parameters
    ----------
    x : Tensor
        Arguments in [-1, 1], any shape.
    lmax : int
        Highest degree.

    Returns
    -------
    Tensor
        Shape ``[*x.shape, lmax + 1]``.
    """
    values = [torch.ones_like(x), x]
    for degree in range(2, lmax + 1):
        values.append(((2 * degree - 1) * x * values[-1] - (degree - 1) * values[-2]) / degree)
    return torch.stack(values[: lmax + 1], dim=-1)


def harmonics_by_degree(points: Tensor, lmax: int) -> Iterator[Tensor]:
    """Real spherical harmonics, one degree at a time.

    Same convention as e3nn: polar axis y, ``m`` from ``-l`` to ``l``, component normalisation
    (the sum over ``m`` of the squares is ``2 l + 1``).

    Parameters
    ----------
    points : Tensor
        Unit vectors, ``[..., 3]``.
    lmax : int
        Highest degree.

    Yields
    ------
    Tensor
        ``[..., 2 l + 1]`` for ``l = 0 .. lmax``.
    """
    x, y, z = points.unbind(-1)
    height = y.unsqueeze(-1)
    # cosines[m] + i sines[m] = (z + i x)^m = sin(polar)^m exp(i m azimuth)
    cosines, sines = [torch.ones_like(x)], [torch.zeros_like(x)]
    # polar parts of degree l - 1 and l - 2 for m = 0 .. l, without the factor sin(polar)^m
    previous, before = points[..., :0], points[..., :0]
    sectoral = 1.0
    for degree in range(lmax + 1):
        if degree > 0:
            cosines.append(cosines[-1] * z - sines[-1] * x)
            sines.append(sines[-1] * z + cosines[-2] * x)
            sectoral *= math.sqrt((2 * degree + 1) / (2 * degree))
        current = _next_polar(degree, sectoral, height, previous, before)
        root2 = math.sqrt(2.0)
        positive = current[..., 1:] * root2
        cos_m = torch.stack(cosines[1:], dim=-1) if degree else points[..., :0]
        sin_m = torch.stack(sines[1:], dim=-1) if degree else points[..., :0]
        yield torch.cat([(positive * sin_m).flip(-1), current[..., :1], positive * cos_m], dim=-1)
        previous, before = current, previous


def _next_polar(
    degree: int, sectoral: float, height: Tensor, previous: Tensor, before: Tensor
) -> Tensor:
    """Normalised associated Legendre functions of one degree, divided by sin(polar)^m."""
    top = torch.full_like(height, sectoral)
    if degree == 0:
        return top
    if degree == 1:
        return torch.cat([math.sqrt(3.0) * height, top], dim=-1)
    order = torch.arange(degree, dtype=height.dtype, device=height.device)
    below = torch.cat([before, torch.zeros_like(height)], dim=-1)
    square = float(degree * degree)
    ahead = torch.sqrt((4 * square - 1) / (square - order**2))
    behind = torch.sqrt(
        (2 * degree + 1)
        * ((degree - 1) ** 2 - order**2).clamp(min=0)
        / ((2 * degree - 3) * (square - order**2))
    )
    return torch.cat([ahead * height * previous - behind * below, top], dim=-1)


def measured_degree(
    points: Tensor, weights: Tensor, tolerance: float = 1e-9, limit: int = 200
) -> int:
    """Largest ``t`` such that every harmonic of degree 1 .. t integrates to zero.

    Parameters
    ----------
    points : Tensor
        Unit vectors, ``[S, 3]``, float64.
    weights : Tensor
        ``[S]``, sum 1.
    tolerance : float
        Largest accepted absolute value of a component-normalised integral.
    limit : int
        Degree at which the search stops.

    Returns
    -------
    int
        The degree; 0 if even the dipole fails.
    """
    for degree, values in enumerate(harmonics_by_degree(points, limit)):
        if degree > 0 and (weights @ values).abs().max() >= tolerance:
            return degree - 1
    return limit


def design_energy(points: Tensor, weights: Tensor, degree: int) -> float:
    """Squared integration error, ``sum_{l=1..t} (2l+1) sum_jk w_j w_k P_l(p_j . p_k)``.

    With equal weights this is the energy whose zeros are the spherical designs of degree ``t``.
    By the addition theorem it equals ``sum_{l=1..t, m} (sum_s w_s Y_lm(p_s))^2``, which is how
    it is computed: the form in P_l cancels and cannot go below 1e-16.

    Parameters
    ----------
    points : Tensor
        Unit vectors, ``[S, 3]``, float64.
    weights : Tensor
        ``[S]``, sum 1.
    degree : int
        ``t``.

    Returns
    -------
    float
        The energy, dimensionless.
    """
    harmonics = list(harmonics_by_degree(points, degree))
    return float(sum((weights @ values).square().sum() for values in harmonics[1:]))
