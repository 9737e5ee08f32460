"""Transforms between steerable coefficients and values at points on the sphere.

arXiv 2505.23086, eq. 4 (to the sphere), 5 and 12 (back).
"""

from __future__ import annotations

import torch
from torch import Tensor

from est_ocp.errors import ConfigError
from est_ocp.sphere.constants import ConstantBuffers
from est_ocp.sphere.harmonics import spherical_harmonics
from est_ocp.sphere.rule import SphereRule

INVERSES = ("quadrature", "diagonal", "least_squares")


class SphericalTransform(ConstantBuffers):
    """Linear maps ``x [N, I, C] -> f [N, S, C]`` and back, on a fixed set of points.

    To the sphere: ``f_s = sum_i Y_i(p_s) x_i``, component normalisation. Back, by one of

    - ``"quadrature"``: ``x_i = sum_s w_s Y_i(p_s) f_s``, the discrete form of the projection;
      exact for band-limited ``f`` when the rule's degree is at least ``2 lmax``;
    - ``"diagonal"``: ``x_i = sum_s Y_i(p_s) f_s / sum_s Y_i(p_s)^2``, the paper's eq. 12, without
      weights; exact only where the discrete harmonics are orthogonal;
    - ``"least_squares"``: the pseudo-inverse of ``Y`` in the norm of the weights; exact whenever
      the points determine the coefficients.

    The matrices are built in float64 and kept in float32 at least. Inputs of half precision,
    autocast or not, are multiplied by each matrix in two parts of 8 bits, a high and a low one,
    whose sum is the matrix to a relative error of 2^-17: the products run in the input's dtype,
    with sums in float32, and no float32 copy of a feature on the sphere is made. The result is
    returned in the input's dtype.

    Parameters
    ----------
    rule : SphereRule
        Points and weights.
    lmax : int
        Highest degree of the coefficients.
    inverse : {"quadrature", "diagonal", "least_squares"}
        The way back.
    coefficients : Tensor, optional
        Indices ``i = l*l + l + m`` of a subset of coefficients, in the order of the features'
        rows, e.g. those with ``|m| <= mmax``. All of them by default.
    low_precision : bool
        Multiply in the input's (or autocast's) dtype, constants rounded to it: faster, but in
        bfloat16 each harmonic then carries a relative error of up to 2e-3.

    Attributes
    ----------
    rule, lmax, num_points, num_coefficients, inverse
        As given; ``S`` and ``I``.
    to_points_matrix : Tensor
        ``[S, I]``.
    from_points_matrix : Tensor
        ``[I, S]``.
    square_matrix, square_weights : Tensor
        ``[I, I]`` and ``[I]``: ``sum_s w_s f_s^2 = sum_k square_weights_k (square_matrix x)_k^2``,
        the mean square over the sphere from I values in place of S.
    round_trip_error : float
        Largest entry of ``|from_points_matrix @ to_points_matrix - 1|``, in float64.

    Raises
    ------
    ConfigError
        If the inverse is unknown, an index is out of range, or the points are too few (or too
        degenerate, for least squares) to determine the coefficients.
    """

    def __init__(
        self,
        rule: SphereRule,
        lmax: int,
        inverse: str = "quadrature",
        coefficients: Tensor | None = None,
        low_precision: bool = False,
    ) -> None:
        super().__init__()
        if inverse not in INVERSES:
            raise ConfigError(f"unknown inverse '{inverse}'; choose one of {', '.join(INVERSES)}")
        self.rule = rule
        self.lmax = lmax
        self.inverse = inverse
        self.low_precision = low_precision
        self.num_points = rule.num_points

        harmonics = spherical_harmonics(rule.points, lmax)
        if rule.num_points < harmonics.shape[1]:
            raise ConfigError(
                f"{rule.num_points} points of rule '{rule.name}' cannot carry the "
                f"{harmonics.shape[1]} coefficients of lmax={lmax}; use more points"
            )
        back = _inverse_matrix(harmonics, rule, inverse)
        if coefficients is not None:
            index = _checked_index(coefficients, harmonics.shape[1])
            harmonics, back = harmonics[:, index], back[index]
        self.num_coefficients = harmonics.shape[1]
        identity = torch.eye(self.num_coefficients, dtype=torch.float64, device="cpu")
        self.round_trip_error = (back @ harmonics - identity).abs().max().item()
        square_weights, square_axes = torch.linalg.eigh((harmonics.T * rule.weights) @ harmonics)
        self.register_constant("square_matrix", square_axes.T)
        self.register_constant("square_weights", square_weights)
        self.register_constant("to_points_matrix", harmonics)
        self.register_constant("from_points_matrix", back)
        # Both [2 I, S]: rows are long and aligned, as fast kernels want them.
        self.register_constant("_to_points_parts", torch.cat(_halves(harmonics.T)))
        self.register_constant("_from_points_parts", torch.cat(_halves(back)))

    @property
    def exact(self) -> bool:
        """Whether coefficients survive the way to the points and back (to 1e-8).

        True for least squares, and for the quadrature inverse on rules of degree ``>= 2 lmax``.
        """
        return self.round_trip_error < 1e-8

    def to_points(self, x: Tensor) -> Tensor:
        """Evaluate coefficients ``x`` [N, I, C] at the points: [N, S, C], dtype of ``x``."""
        if self._in_halves(x):
            with torch.autocast(device_type=x.device.type, enabled=False):
                parts = self._to_points_parts.to(x.dtype).mT
                return torch.matmul(parts, torch.cat((x, x), dim=-2))
        return self._multiply(self.to_points_matrix, x)

    def from_points(self, f: Tensor) -> Tensor:
        """Project values ``f`` [N, S, C] on the harmonics: [N, I, C], dtype of ``f``."""
        if self._in_halves(f):
            with torch.autocast(device_type=f.device.type, enabled=False):
                both = torch.matmul(self._from_points_parts.to(f.dtype), f)
                high, low = both.chunk(2, dim=-2)
                return high + low
        return self._multiply(self.from_points_matrix, f)

    def _in_halves(self, value: Tensor) -> bool:
        return value.dtype in (torch.bfloat16, torch.float16) and not self.low_precision

    def _multiply(self, matrix: Tensor, value: Tensor) -> Tensor:
        if self.low_precision:
            return torch.matmul(matrix.to(value.dtype), value)
        with torch.autocast(device_type=value.device.type, enabled=False):
            dtype = torch.promote_types(matrix.dtype, value.dtype)
            return torch.matmul(matrix.to(dtype), value.to(dtype))

    def extra_repr(self) -> str:
        """Describe the transform in the module's printed form."""
        return f"rule={self.rule.name}, lmax={self.lmax}, inverse={self.inverse}"


def _halves(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices of bfloat16 numbers whose sum is close to the given one, in its dtype."""
    high = matrix.to(torch.bfloat16).to(matrix.dtype)
    return high, (matrix - high).to(torch.bfloat16).to(matrix.dtype)


def _inverse_matrix(harmonics: Tensor, rule: SphereRule, inverse: str) -> Tensor:
    """Matrix [I, S] taking values at the points to coefficients, float64."""
    if inverse == "quadrature":
        return harmonics.T * rule.weights
    if inverse == "diagonal":
        square = harmonics.square().sum(dim=0)
        # a harmonic that vanishes at every point has no diagonal inverse; it maps to zero
        scale = torch.where(square > 1e-20, 1 / square.clamp(min=1e-20), 0.0)
        return scale[:, None] * harmonics.T
    root = rule.weights.sqrt()
    weighted = root[:, None] * harmonics
    singular = torch.linalg.svdvals(weighted)
    if singular[-1] < 1e-6 * singular[0]:
        raise ConfigError(
            f"points of rule '{rule.name}' do not determine all harmonics up to the degree asked "
            "for; use more points or another rule"
        )
    return torch.linalg.pinv(weighted) * root


def _checked_index(coefficients: Tensor, count: int) -> Tensor:
    index = torch.as_tensor(coefficients, dtype=torch.long, device="cpu")
    if index.ndim != 1 or len(index) == 0 or index.min() < 0 or index.max() >= count:
        raise ConfigError(
            f"coefficients must be a list of indices from 0 to {count - 1}, i = l*l + l + m"
        )
    return index
