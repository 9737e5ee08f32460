"""Equiformer's own feed-forward block."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.nn.equiformer.gate import IrrepsGate
from est_ocp.nn.equiformer.layout import IrrepsLayout
from est_ocp.nn.equiformer.linear import IrrepsLinear


class IrrepsFeedForward(nn.Module):
    """Degree-wise linear map, gate, degree-wise linear map (arXiv 2206.11990, figure 1c).

    Degrees that the output lacks are left out of the hidden layer: they could not reach it.

    Parameters
    ----------
    irreps_in, irreps_hidden, irreps_out : IrrepsLayout
    """

    def __init__(
        self, irreps_in: IrrepsLayout, irreps_hidden: IrrepsLayout, irreps_out: IrrepsLayout
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        self.gate = IrrepsGate(irreps_hidden.keep(irreps_out.degrees))
        self.linear_in = IrrepsLinear(irreps_in, self.gate.irreps_in)
        self.linear_out = IrrepsLinear(self.gate.irreps, irreps_out)

    def forward(
        self,
        x: torch.Tensor,
        batch: torch.Tensor | None = None,
        num_graphs: int | None = None,
    ) -> torch.Tensor:
        """Map flat features ``x`` [N, irreps_in.dim] to [N, irreps_out.dim].

        ``batch`` and ``num_graphs`` are accepted, as of every update block, and not used.
        """
        hidden = self.gate(self.linear_in(self.irreps_in.split(x)))
        return self.irreps_out.join(self.linear_out(hidden))

    def extra_repr(self) -> str:
        return f"{self.irreps_in} -> {self.irreps_out}"
