"""One layer of a host network: attention over neighbours, then an update of every node."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.nn.drop import EquivariantDropout, GraphDropPath
from est_ocp.nn.edge_rotation import EdgeOrder
from est_ocp.nn.layer_norm import EquivariantLayerNorm


class TransformerBlock(nn.Module):
    """Pre-norm residual layer of EquiformerV2 (arXiv 2306.12059, figure 1) with any update block.

    ``x = x + drop(attention(norm_1(x)))`` and ``x = x + drop(update(norm_2(x)))``.

    Parameters
    ----------
    attention : Module
        Message block, called with (x, atomic_numbers, edge_scalars, edge_index, wigner,
        order, envelope).
    update : Module
        Update block, called with (x, batch, num_graphs).
    lmax, channels : int
        Degree and width of the features.
    drop_path : float
        Probability that a graph loses a residual branch in training.
    proj_drop : float
        Dropout of whole channels on both branches in training.
    """

    def __init__(
        self,
        attention: nn.Module,
        update: nn.Module,
        lmax: int,
        channels: int,
        drop_path: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm_1 = EquivariantLayerNorm(lmax, channels)
        self.attention = attention
        self.norm_2 = EquivariantLayerNorm(lmax, channels)
        self.update = update
        self.drop_path = GraphDropPath(drop_path)
        self.proj_drop = EquivariantDropout(proj_drop)

    def forward(
        self,
        x: torch.Tensor,
        atomic_numbers: torch.Tensor,
        edge_scalars: torch.Tensor,
        edge_index: torch.Tensor,
        wigner: torch.Tensor,
        batch: torch.Tensor,
        num_graphs: int,
        order: EdgeOrder | None = None,
        envelope: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the features after the layer.

        Parameters
        ----------
        x : Tensor [N, (lmax+1)**2, C]
        atomic_numbers : Tensor [N], int64
        edge_scalars : Tensor [E, B]
            Radial basis of the edge lengths.
        edge_index : Tensor [2, E]
            Row 0 sources, row 1 targets.
        wigner : Tensor [E, R, (lmax+1)**2]
            Rotations into the edges' frames (:class:`est_ocp.nn.EdgeFrame`).
        batch : Tensor [N], int64
            Graph of every node.
        num_graphs : int
        order : EdgeOrder, optional
            Edges sorted by their ends: allows fused kernels on GPUs.
        envelope : Tensor [E], optional
            Fades edges out at the cutoff.
        """
        message = self.attention(
            self.norm_1(x), atomic_numbers, edge_scalars, edge_index, wigner, order, envelope
        )
        x = x + self.proj_drop(self.drop_path(message, batch, num_graphs))
        update = self.update(self.norm_2(x), batch, num_graphs)
        return x + self.proj_drop(self.drop_path(update, batch, num_graphs))
