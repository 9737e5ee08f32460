"""The EST update block between irreps of unequal widths."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn.equiformer.layout import IrrepsLayout
from est_ocp.nn.equiformer.linear import IrrepsLinear
from est_ocp.nn.est_update import ESTUpdateBlock
from est_ocp.sphere import SphereRule


class IrrepsESTUpdate(nn.Module):
    """EST update of flat irreps, through one width for all degrees.

    A degree-wise linear map takes the irreps to the "intermediate dimension during the Fourier
    transform" (paper, Table 9), :class:`est_ocp.nn.ESTUpdateBlock` acts on
    ``[N, (lmax+1)**2, channels]``, and another map makes the output's irreps, of which there may
    be fewer degrees than the block's.

    Parameters
    ----------
    irreps_in, irreps_out : IrrepsLayout
        All degrees from 0 to the input's highest; any of them in the output.
    channels : int
        Width inside.
    rule : SphereRule
        Sampling points of the sphere.
    **options
        Of :class:`est_ocp.nn.ESTUpdateBlock`, but for its `hidden_channels`.

    Raises
    ------
    ConfigError
        If the input lacks a degree, or the options do not fit.
    """

    def __init__(
        self,
        irreps_in: IrrepsLayout,
        irreps_out: IrrepsLayout,
        channels: int,
        rule: SphereRule,
        **options: Any,
    ) -> None:
        super().__init__()
        lmax = irreps_in.degrees[-1]
        if irreps_in.degrees != tuple(range(lmax + 1)):
            raise ConfigError(f"an EST update needs all degrees up to {lmax}, got {irreps_in}")
        inner = IrrepsLayout.uniform(channels, lmax)
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        self.orders = [2 * degree + 1 for degree in inner.degrees]
        self.map_in = IrrepsLinear(irreps_in, inner)
        self.block = ESTUpdateBlock(channels, lmax, rule, **options)
        self.map_out = IrrepsLinear(inner, irreps_out)

    def forward(
        self,
        x: torch.Tensor,
        batch: torch.Tensor | None = None,
        num_graphs: int | None = None,
    ) -> torch.Tensor:
        """Update flat features; the caller adds the residual.

        Parameters
        ----------
        x : Tensor [N, irreps_in.dim]
            Normalised features.
        batch, num_graphs
            As of :class:`est_ocp.nn.ESTUpdateBlock`.

        Returns
        -------
        Tensor [N, irreps_out.dim]
        """
        features = torch.cat(self.map_in(self.irreps_in.split(x)), dim=1)
        updated = self.block(features, batch, num_graphs)
        return self.irreps_out.join(self.map_out(list(updated.split(self.orders, dim=1))))

    def extra_repr(self) -> str:
        return f"{self.irreps_in} -> {self.irreps_out}"
