"""Real spherical harmonics in the package's convention."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor

from est_ocp.sphere.legendre import harmonics_by_degree

#: Highest degree of e3nn's closed formulas.
E3NN_LMAX = 11


def spherical_harmonics(points: Tensor, lmax: int) -> Tensor:
    """Evaluate all harmonics up to a degree at unit vectors.

    Convention: e3nn's real harmonics, polar axis y, the degree-1 block is ``sqrt(3) (x, y, z)``;
    component normalisation, the mean over the sphere of each ``Y_i^2`` is 1.

    Parameters
    ----------
    points : Tensor
        Unit vectors, ``[..., 3]``, float32 or float64. They are not normalised here.
    lmax : int
        Highest degree.

    Returns
    -------
    Tensor
        ``[..., (lmax + 1)**2]`` with ``i = l*l + l + m``, dtype of ``points``.
    """
    if lmax > E3NN_LMAX:
        return torch.cat(list(harmonics_by_degree(points, lmax)), dim=-1)
    return o3.spherical_harmonics(
        list(range(lmax + 1)), points, normalize=False, normalization="component"
    )
