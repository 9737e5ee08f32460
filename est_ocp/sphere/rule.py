"""A set of points on the sphere with weights: what a discrete integral needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from est_ocp.errors import ConfigError
from est_ocp.sphere.legendre import measured_degree


@dataclass(frozen=True, eq=False)
class SphereRule:
    """Quadrature rule for averages over the unit sphere, ``mean f = sum_s w_s f(p_s)``.

    Attributes
    ----------
    name : str
        Kind and size, for messages, e.g. ``"design-128"``.
    points : Tensor
        Unit vectors, ``[S, 3]``, float64, on the CPU.
    weights : Tensor
        Positive, ``[S]``, float64, sum 1.
    degree : int
        Measured: every polynomial up to this degree is averaged to within 1e-9.
    """

    name: str
    points: Tensor
    weights: Tensor
    degree: int

    def __post_init__(self) -> None:
        check_points(self.points, self.weights, self.name)

    @classmethod
    def from_points(cls, name: str, points: Tensor, weights: Tensor | None = None) -> SphereRule:
        """Make a rule and measure its degree.

        Parameters
        ----------
        name : str
            Name of the rule.
        points : Tensor
            Unit vectors, ``[S, 3]``, float64.
        weights : Tensor, optional
            ``[S]``, positive, sum 1; equal weights by default.

        Returns
        -------
        SphereRule
            The rule.

        Raises
        ------
        ConfigError
            If the points are not unit vectors or the weights not positive with sum 1.
        """
        if weights is None:
            size = len(points)
            weights = torch.full((size,), 1.0 / size, dtype=torch.float64, device="cpu")
        check_points(points, weights, name)
        return cls(name, points, weights, measured_degree(points, weights))

    @property
    def num_points(self) -> int:
        """Number of points, S."""
        return len(self.points)

    @property
    def min_angle(self) -> float:
        """Smallest angle between two points, degrees."""
        return minimum_angle(self.points)


def minimum_angle(points: Tensor) -> float:
    """Smallest angle between two of the unit vectors ``points`` [S, 3], in degrees."""
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    distance.fill_diagonal_(2.0)
    return math.degrees(2 * math.asin(min(1.0, distance.min().item() / 2)))


def check_points(points: Tensor, weights: Tensor, name: str) -> None:
    """Refuse anything that is not a set of unit vectors with positive weights of sum 1.

    Parameters
    ----------
    points : Tensor
        ``[S, 3]``, float64.
    weights : Tensor
        ``[S]``, float64.
    name : str
        Name of the rule, for the message.

    Raises
    ------
    ConfigError
        Naming the rule and the fault.
    """
    shaped = points.ndim == 2 and points.shape[1] == 3 and len(points) > 0
    if not shaped or weights.shape != points.shape[:1]:
        raise ConfigError(
            f"sphere rule '{name}': need points [S, 3] and weights [S], "
            f"got {tuple(points.shape)} and {tuple(weights.shape)}"
        )
    if points.dtype != torch.float64 or weights.dtype != torch.float64:
        raise ConfigError(f"sphere rule '{name}': points and weights must be float64")
    # written so that NaN fails
    if not bool((points.norm(dim=1) - 1).abs().max() < 1e-12):
        raise ConfigError(f"sphere rule '{name}': points are not unit vectors; normalise them")
    if not bool(weights.min() > 0):
        raise ConfigError(f"sphere rule '{name}': weights must be positive")
    if not bool((weights.sum() - 1).abs() < 1e-12):
        raise ConfigError(f"sphere rule '{name}': weights must sum to 1")
