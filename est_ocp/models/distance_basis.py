"""Radial bases that backbones offer by name."""

from __future__ import annotations

from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn import BesselBasis
from est_ocp.nn.equiformer import LearnableGaussianBasis

#: By the value of ``model.backbone.distance_basis``.
DISTANCE_BASES = {"gaussian": LearnableGaussianBasis, "bessel": BesselBasis}


def make_distance_basis(kind: str, cutoff: float, num_basis: int) -> nn.Module:
    """Return a radial basis with trained parameters.

    Parameters
    ----------
    kind : {"gaussian", "bessel"}
    cutoff : float
        Angstrom.
    num_basis : int

    Raises
    ------
    ConfigError
        If there is no basis of that name.
    """
    if kind not in DISTANCE_BASES:
        raise ConfigError(
            f"unknown model.backbone.distance_basis '{kind}'; choose one of "
            f"{', '.join(DISTANCE_BASES)}"
        )
    return DISTANCE_BASES[kind](cutoff, num_basis)
