"""First node features of all degrees from harmonics and elements of the neighbours."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.nn.radial_mlp import ElementRadialMLP
from est_ocp.nn.scatter import scatter_sum


def scale_harmonics(edge_sh: torch.Tensor, radial: torch.Tensor) -> torch.Tensor:
    """Harmonics [E, (L+1)**2] times channels of their degree [E, L+1, C]: [E, (L+1)**2, C]."""
    edge_sh = edge_sh.to(radial.dtype).unsqueeze(-1)
    blocks = [
        edge_sh[:, degree * degree : (degree + 1) * (degree + 1)] * weight.unsqueeze(1)
        for degree, weight in enumerate(radial.unbind(1))
    ]
    return torch.cat(blocks, dim=1)


class HarmonicEdgeEmbedding(nn.Module):
    """Sum over neighbours of faded radial weights times the spherical harmonics of the edges.

    ``y_lm = sum_j u(d) R_l(d, elements) Y_lm(r) / sqrt(avg_degree)``: the features of
    EquiformerV2's edge-degree embedding (arXiv 2306.12059, appendix A), of all orders and without
    edge frames.

    Parameters
    ----------
    channels, lmax : int
    max_num_elements : int
        Atomic numbers must be below this.
    edge_channels : int
        Width of the radial network.
    num_distance_basis : int
    avg_degree : float
        Average number of neighbours.
    """

    def __init__(
        self,
        channels: int,
        lmax: int,
        max_num_elements: int,
        edge_channels: int,
        num_distance_basis: int,
        avg_degree: float,
    ) -> None:
        super().__init__()
        self.channels, self.lmax = channels, lmax
        self.factor = 1.0 / math.sqrt(avg_degree)
        self.radial = ElementRadialMLP(
            num_distance_basis, edge_channels, (lmax + 1) * channels, max_num_elements
        )

    def forward(
        self,
        atomic_numbers: torch.Tensor,
        edge_index: torch.Tensor,
        edge_sh: torch.Tensor,
        edge_scalars: torch.Tensor,
        envelope: torch.Tensor,
    ) -> torch.Tensor:
        """Embed the neighbourhoods.

        Parameters
        ----------
        atomic_numbers : Tensor [N], integer
        edge_index : Tensor [2, E]
            Row 0 sources, row 1 targets.
        edge_sh : Tensor [E, (lmax+1)**2]
        edge_scalars : Tensor [E, num_distance_basis]
        envelope : Tensor [E]

        Returns
        -------
        Tensor [N, (lmax+1)**2, channels]
            At least float32; zero for nodes without edges.
        """
        weights = self.radial(edge_scalars, atomic_numbers, edge_index)
        weights = weights.unflatten(-1, (self.lmax + 1, self.channels))
        faded = edge_sh * (envelope * self.factor).unsqueeze(1)
        return scatter_sum(scale_harmonics(faded, weights), edge_index[1], len(atomic_numbers))

    def extra_repr(self) -> str:
        return f"channels={self.channels}, lmax={self.lmax}"
