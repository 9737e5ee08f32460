"""One layer of the EST network: messages, then an update of every node."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.nn.drop import EquivariantDropout, GraphDropPath
from est_ocp.nn.layer_norm import EquivariantLayerNorm


class ESTLayer(nn.Module):
    """Pre-norm residual layer of two EST blocks (paper, figure 3).

    ``x = x + drop(message(norm_1(x)))`` and ``x = x + drop(update(norm_2(x)))``. The paper says
    that the update reads the aggregated message; here it reads the node's features with the
    message added, as in the hosts that EST is put into.

    Parameters
    ----------
    message : Module
        Called with (x, edge_index, edge_sh, edge_scalars, envelope).
    update : Module
        Called with (x, batch, num_graphs).
    lmax, channels : int
        Degree and width of the features.
    drop_path : float
        Probability that a graph loses a residual branch in training.
    proj_drop : float
        Dropout of whole channels on both branches in training.
    """

    def __init__(
        self,
        message: nn.Module,
        update: nn.Module,
        lmax: int,
        channels: int,
        drop_path: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm_1 = EquivariantLayerNorm(lmax, channels)
        self.message = message
        self.norm_2 = EquivariantLayerNorm(lmax, channels)
        self.update = update
        self.drop_path = GraphDropPath(drop_path)
        self.proj_drop = EquivariantDropout(proj_drop)

    def forward(
        self,
        x: torch.Tensor,
        edge_index: torch.Tensor,
        edge_sh: torch.Tensor,
        edge_scalars: torch.Tensor,
        envelope: torch.Tensor,
        batch: torch.Tensor,
        num_graphs: int,
    ) -> torch.Tensor:
        """Return the features after the layer.

        Parameters
        ----------
        x : Tensor [N, (lmax+1)**2, C]
        edge_index : Tensor [2, E]
            Row 0 sources, row 1 targets.
        edge_sh : Tensor [E, (lmax+1)**2]
            Harmonics of the edges.
        edge_scalars : Tensor [E, B]
            Radial basis.
        envelope : Tensor [E]
        batch : Tensor [N], int64
            Graph of every node.
        num_graphs : int

        Returns
        -------
        Tensor [N, (lmax+1)**2, C]
        """
        message = self.message(self.norm_1(x), edge_index, edge_sh, edge_scalars, envelope)
        x = x + self.proj_drop(self.drop_path(message, batch, num_graphs))
        update = self.update(self.norm_2(x), batch, num_graphs)
        return x + self.proj_drop(self.drop_path(update, batch, num_graphs))
