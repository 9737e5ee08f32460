"""One layer of Equiformer with any update block."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.nn.drop import GraphDropPath
from est_ocp.nn.equiformer.attention import EquiformerAttention
from est_ocp.nn.equiformer.layer_norm import IrrepsLayerNorm
from est_ocp.nn.equiformer.layout import IrrepsLayout
from est_ocp.nn.equiformer.linear import IrrepsLinear


class EquiformerBlock(nn.Module):
    """Pre-norm residual layer (arXiv 2206.11990, figure 1a).

    ``x = x + drop(attention(norm_1(x)))`` and ``x = S(x) + drop(update(norm_2(x)))``, where ``S``
    is a degree-wise linear map if the output's irreps differ from the input's, as in the last
    layer, and nothing otherwise.

    Parameters
    ----------
    irreps_in, irreps_out : IrrepsLayout
    attention : EquiformerAttention
        Message block that keeps ``irreps_in``.
    update : Module
        Update block from ``irreps_in`` to ``irreps_out``, called with (x, batch, num_graphs).
    drop_path : float
        Probability that a graph loses a residual branch in training.
    """

    def __init__(
        self,
        irreps_in: IrrepsLayout,
        irreps_out: IrrepsLayout,
        attention: EquiformerAttention,
        update: nn.Module,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        self.norm_1 = IrrepsLayerNorm(irreps_in)
        self.attention = attention
        self.norm_2 = IrrepsLayerNorm(irreps_in)
        self.update = update
        self.shortcut = None if irreps_in == irreps_out else IrrepsLinear(irreps_in, irreps_out)
        self.drop_path = GraphDropPath(drop_path)

    def forward(
        self,
        x: torch.Tensor,
        edge_index: torch.Tensor,
        edge_sh: torch.Tensor,
        edge_scalars: torch.Tensor,
        batch: torch.Tensor,
        num_graphs: int,
        envelope: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the features after the layer.

        Parameters
        ----------
        x : Tensor [N, irreps_in.dim]
            Flat node features.
        edge_index : Tensor [2, E]
            Row 0 sources, row 1 targets.
        edge_sh : Tensor [E, (lmax_sh+1)**2]
            Harmonics of the edges.
        edge_scalars : Tensor [E, B]
            Radial basis.
        batch : Tensor [N], int64
            Graph of every node.
        num_graphs : int
        envelope : Tensor [E], optional
            Fades edges out at the cutoff.

        Returns
        -------
        Tensor [N, irreps_out.dim]
        """
        message = self.attention(self.norm_1(x), edge_index, edge_sh, edge_scalars, envelope)
        x = x + self.drop_path(message, batch, num_graphs)
        update = self.update(self.norm_2(x), batch, num_graphs)
        if self.shortcut is not None:
            x = self.irreps_out.join(self.shortcut(self.irreps_in.split(x)))
        return x + self.drop_path(update, batch, num_graphs)
