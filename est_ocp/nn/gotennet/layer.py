"""One layer of GotenNet: attention over neighbours, then an update of every node."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.nn.edge_rotation import EdgeOrder
from est_ocp.nn.gotennet.gata import GATA


class GotenNetLayer(nn.Module):
    """``x, t = attention(x, t)`` (residuals inside), then ``x = x + update(x)``.

    Parameters
    ----------
    attention : GATA
    update : Module
        Called with (x, batch, num_graphs): :class:`EQFF` or :class:`GotenNetESTUpdate`.
    """

    def __init__(self, attention: GATA, update: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.update = update

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        edge_index: torch.Tensor,
        harmonics: torch.Tensor,
        fade: torch.Tensor,
        batch: torch.Tensor,
        num_graphs: int,
        order: EdgeOrder | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return node features and edge scalars after the layer.

        Parameters
        ----------
        x, t, edge_index, harmonics, fade
            As of :class:`GATA`.
        batch : Tensor [N], int64
            Graph of every node.
        num_graphs : int
        order : EdgeOrder, optional
            As of :class:`GATA`.
        """
        x, t = self.attention(x, t, edge_index, harmonics, fade, order)
        return x + self.update(x, batch, num_graphs), t
