"""Where the coefficients of steerable features live: degree-major and order-major layouts.

Node features are degree-major, ``i = l*l + l + m``. Features in an edge's frame keep only orders
``|m| <= mmax`` and are order-major: all ``m = 0`` rows by rising degree, then for each
``m = 1..mmax`` the rows ``+m`` by rising degree followed by the rows ``-m``. Order-major rows let
an SO(2) convolution read each order as one slice, and make "only ``|m| <= k``" a prefix.
"""

from __future__ import annotations

import math

import torch

from est_ocp.errors import ConfigError


def check_degrees(lmax: int, mmax: int, lmin_out: int = 0, lmax_out: int | None = None) -> None:
    """Refuse degrees and orders that do not fit together.

    Raises
    ------
    ConfigError
        Unless ``0 <= mmax <= lmax`` and ``0 <= lmin_out <= lmax_out <= lmax``.
    """
    if not 0 <= mmax <= lmax:
        raise ConfigError(f"mmax={mmax} must lie between 0 and lmax={lmax}")
    last = lmax if lmax_out is None else lmax_out
    if not 0 <= lmin_out <= last <= lmax:
        raise ConfigError(
            f"output degrees {lmin_out}..{last} must lie within 0..lmax={lmax} and not be empty"
        )


def degree_of_coefficient(lmax: int) -> torch.Tensor:
    """Degree of each degree-major coefficient, int64 [(lmax+1)**2]."""
    degrees = torch.arange(lmax + 1)
    return degrees.repeat_interleave(2 * degrees + 1)


def degree_selection(lmax: int, lmin: int = 0) -> torch.Tensor:
    """One-hot degrees of the coefficients of degrees lmin to lmax, float64 [I, lmax + 1 - lmin].

    Times one row a degree it gives one row a coefficient, and its derivative adds rows up in a
    fixed order, which that of indexing does not on GPUs.
    """
    degrees = degree_of_coefficient(lmax)[lmin * lmin :]
    return torch.nn.functional.one_hot(degrees - lmin, lmax + 1 - lmin).double()


def frame_rows(
    lmax: int, mmax: int, lmin_out: int = 0, lmax_out: int | None = None
) -> list[tuple[int, int]]:
    """List ``(l, m)`` of the order-major rows with ``lmin_out <= l <= lmax_out``, ``|m| <= mmax``.

    ``lmax_out`` defaults to ``lmax``.
    """
    last = lmax if lmax_out is None else lmax_out
    rows = [(degree, 0) for degree in range(lmin_out, last + 1)]
    for order in range(1, min(mmax, last) + 1):
        degrees = range(max(order, lmin_out), last + 1)
        rows += [(degree, order) for degree in degrees]
        rows += [(degree, -order) for degree in degrees]
    return rows


def num_frame_rows(lmax: int, mmax: int) -> int:
    """Count the coefficients with ``l <= lmax`` and ``|m| <= mmax``."""
    return len(frame_rows(lmax, mmax))


def order_major_index(lmax: int, mmax: int) -> torch.Tensor:
    """Degree-major index of each order-major row, int64 [R]."""
    rows = frame_rows(lmax, mmax)
    return torch.tensor([degree * degree + degree + order for degree, order in rows])


def frame_row_subset(lmax: int, mmax: int, lmin_out: int, lmax_out: int) -> torch.Tensor:
    """Positions, among the order-major rows of (lmax, mmax), of those of the output degrees."""
    position = {row: i for i, row in enumerate(frame_rows(lmax, mmax))}
    rows = frame_rows(lmax, mmax, lmin_out, lmax_out)
    return torch.tensor([position[row] for row in rows])


def truncation_rescale(lmax: int, mmax: int) -> torch.Tensor:
    """Factor of each degree that makes up for its dropped orders, float64 [lmax + 1].

    ``sqrt((2l+1) / (2 mmax + 1))`` for ``l > mmax``, else 1: a degree with unit-variance
    coefficients keeps its norm when only ``|m| <= mmax`` remain (eSCN, arXiv 2302.03655; the same
    factors as in EquiformerV2).
    """
    factors = [
        math.sqrt((2 * degree + 1) / (2 * min(degree, mmax) + 1)) for degree in range(lmax + 1)
    ]
    return torch.tensor(factors, dtype=torch.float64)
