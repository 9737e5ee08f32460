"""First features of nodes and edges (GotenNet, equations 1 to 3)."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.nn.gather import gather
from est_ocp.nn.gotennet.linear import glorot_linear
from est_ocp.nn.scatter import scatter_sum


class NodeFeatures(nn.Module):
    """Scalars of an atom from its element and its neighbours' elements and distances.

    ``h_i = W_2 silu(LayerNorm(W_1 [a(z_i), sum_j b(z_j) W_d phi(d_ij) u(d_ij)]))`` with two
    embeddings a and b of the elements.

    Parameters
    ----------
    channels : int
    num_basis : int
        Width of the radial basis phi.
    max_num_elements : int
        Atomic numbers must be below this.
    """

    def __init__(self, channels: int, num_basis: int, max_num_elements: int) -> None:
        super().__init__()
        # Index 0 is no element; the row is zero and stays so, as in the original.
        self.atom_embedding = nn.Embedding(max_num_elements, channels, padding_idx=0)
        self.neighbor_embedding = nn.Embedding(max_num_elements, channels)
        self.distance_linear = glorot_linear(num_basis, channels)
        self.mlp = nn.Sequential(
            glorot_linear(2 * channels, channels),
            nn.LayerNorm(channels),
            nn.SiLU(),
            glorot_linear(channels, channels),
        )

    def forward(
        self,
        atomic_numbers: torch.Tensor,
        edge_index: torch.Tensor,
        edge_scalars: torch.Tensor,
        fade: torch.Tensor,
    ) -> torch.Tensor:
        """Embed the nodes.

        Parameters
        ----------
        atomic_numbers : Tensor [N], int64
        edge_index : Tensor [2, E]
            Row 0 sources, row 1 targets; no edge from an atom to itself.
        edge_scalars : Tensor [E, num_basis]
            Radial basis.
        fade : Tensor [E]
            Cosine cutoff u.

        Returns
        -------
        Tensor [N, C]
        """
        source, target = edge_index.unbind(0)
        radial = self.distance_linear(edge_scalars) * fade.unsqueeze(-1)
        messages = gather(self.neighbor_embedding(atomic_numbers), source) * radial
        around = scatter_sum(messages, target, len(atomic_numbers))
        return self.mlp(torch.cat((self.atom_embedding(atomic_numbers), around), dim=-1))


class EdgeFeatures(nn.Module):
    """Scalars of an edge from those of its ends: ``t_ij = (h_i + h_j) W phi(d_ij)``.

    Parameters
    ----------
    channels, num_basis : int
        Widths of nodes and radial basis.
    """

    def __init__(self, channels: int, num_basis: int) -> None:
        super().__init__()
        self.distance_linear = glorot_linear(num_basis, channels)

    def forward(
        self, scalars: torch.Tensor, edge_index: torch.Tensor, edge_scalars: torch.Tensor
    ) -> torch.Tensor:
        """Embed the edges.

        Parameters
        ----------
        scalars : Tensor [N, C]
            Of the nodes.
        edge_index : Tensor [2, E]
        edge_scalars : Tensor [E, num_basis]

        Returns
        -------
        Tensor [E, C]
        """
        source, target = edge_index.unbind(0)
        ends = gather(scalars, source) + gather(scalars, target)
        return ends * self.distance_linear(edge_scalars)
