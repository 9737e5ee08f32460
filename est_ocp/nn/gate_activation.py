"""Equivariant activation: every degree is multiplied by a sigmoid of scalars."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from est_ocp.errors import ConfigError


class GateActivation(nn.Module):
    """SiLU on the scalars, sigmoid gates made from scalars on all higher degrees.

    With ``s = [x_{l=0}, gates]`` the output is ``y_{lm} = x_{lm} sigmoid(s_l)``, since SiLU is
    itself ``x sigmoid(x)``. A degree is only ever multiplied by invariants, so the activation is
    strictly equivariant. The module has no parameters. It is the Gate activation between the two
    linear maps of a steerable expert (paper, section 3.2.3).

    Parameters
    ----------
    lmax : int
        Largest degree of the features.
    """

    def __init__(self, lmax: int) -> None:
        super().__init__()
        if lmax < 0:
            raise ConfigError(f"lmax of a gate activation must be at least 0, got {lmax}")
        self.lmax = lmax

    def forward(
        self, x: torch.Tensor, gates: torch.Tensor | None, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Activate steerable features.

        Parameters
        ----------
        x : Tensor [N, (lmax+1)**2, H]
            Steerable features.
        gates : Tensor [N, lmax, H] or None
            Pre-activations of the gates of degrees 1 to lmax; None only if lmax is 0.
        weight : Tensor [N, H], optional
            Invariant factor of each channel (an expert's gate probability). It is folded into the
            small gate tensor, so that it costs no pass over the features.

        Returns
        -------
        Tensor [N, (lmax+1)**2, H]
        """
        scalars, *blocks = x.split([2 * degree + 1 for degree in range(self.lmax + 1)], dim=1)
        pre_activation = scalars if gates is None else torch.cat((scalars, gates), dim=1)
        return torch.cat(self.by_degree(blocks, pre_activation, weight), dim=1)

    def by_degree(
        self,
        blocks: Sequence[torch.Tensor],
        pre_activation: torch.Tensor,
        weight: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Activate features whose degrees are tensors of their own.

        Parameters
        ----------
        blocks : sequence of Tensor [N, 2 l + 1, H]
            Features of degrees 1 to lmax.
        pre_activation : Tensor [N, lmax + 1, H]
            Scalar features, then the pre-activations of the gates.
        weight : Tensor [N, H], optional
            As above.

        Returns
        -------
        list of Tensor [N, 2 l + 1, H]
            Degrees 0 to lmax.
        """
        factor = torch.sigmoid(pre_activation)
        if weight is not None:
            factor = factor * weight.to(factor.dtype).unsqueeze(1)
        # One product per degree broadcasts the factor over the orders; an expanded factor would
        # be as large as the features themselves and would be kept for the backward pass.
        features = (pre_activation[:, :1], *blocks)
        return [x * f for x, f in zip(features, factor.split(1, dim=1), strict=True)]

    def extra_repr(self) -> str:
        return f"lmax={self.lmax}"
