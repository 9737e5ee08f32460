"""Gate activation on irreps of unequal widths."""

from __future__ import annotations

from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn.equiformer.activation import scaled_sigmoid, scaled_silu
from est_ocp.nn.equiformer.layout import Blocks, IrrepsLayout


class IrrepsGate(nn.Module):
    """SiLU on the scalars; every channel of a higher degree times the sigmoid of an extra scalar.

    Both activations have unit second moment. The input has the output's irreps with one more
    scalar for each channel of a higher degree: scalars first, then gates by degree. No parameters.

    Parameters
    ----------
    irreps : IrrepsLayout
        Output; must have scalars.

    Attributes
    ----------
    irreps_in : IrrepsLayout
        Output with the gates added to the scalars.
    """

    def __init__(self, irreps: IrrepsLayout) -> None:
        super().__init__()
        if not irreps.width(0):
            raise ConfigError(f"a gate needs scalars to act, but its irreps are {irreps}")
        self.irreps = irreps
        self.widths = list(irreps.widths)
        self.irreps_in = IrrepsLayout.of(irreps.degrees, [sum(self.widths), *self.widths[1:]])

    def forward(self, blocks: Blocks) -> Blocks:
        """Activate blocks of ``irreps_in``; returns blocks of ``irreps``."""
        scalars, *gates = blocks[0].split(self.widths, dim=-1)
        gated = [
            block * scaled_sigmoid(gate) for block, gate in zip(blocks[1:], gates, strict=True)
        ]
        return [scaled_silu(scalars), *gated]

    def extra_repr(self) -> str:
        return f"{self.irreps_in} -> {self.irreps}"
