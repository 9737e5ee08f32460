"""First node features of all degrees: how many neighbours lie where."""

from __future__ import annotations

import torch

from est_ocp.nn.coefficient_index import (
    check_degrees,
    degree_of_coefficient,
    truncation_rescale,
)
from est_ocp.nn.edge_rotation import EdgeOrder, sum_from_frames
from est_ocp.nn.radial_mlp import ElementRadialMLP
from est_ocp.sphere import ConstantBuffers


class EdgeDegreeEmbedding(ConstantBuffers):
    """Sum over neighbours of radial weights times spherical harmonics of the edges.

    In the edge's frame the harmonics of the edge itself have only ``m = 0``; so radial weights
    fill those rows and the inverse rotation makes the rest (EquiformerV2, arXiv 2306.12059,
    appendix A).

    Parameters
    ----------
    channels : int
    lmax, mmax : int
    max_num_elements : int
        Atomic numbers must be below this.
    edge_channels : int
        Width of the radial network.
    num_distance_basis : int
        Width of the expanded distance.
    rescale_factor : float
        Divides the sum; the average number of neighbours. The default is that of OC20 at 5 A.
    """

    def __init__(
        self,
        channels: int,
        lmax: int,
        mmax: int,
        max_num_elements: int,
        edge_channels: int,
        num_distance_basis: int,
        rescale_factor: float = 23.395238876342773,
    ) -> None:
        super().__init__()
        check_degrees(lmax, mmax)
        self.channels = channels
        self.lmax = lmax
        self.rescale_factor = rescale_factor
        self.radial = ElementRadialMLP(
            num_distance_basis, edge_channels, (lmax + 1) * channels, max_num_elements
        )
        factors = truncation_rescale(lmax, mmax)[degree_of_coefficient(lmax)] / rescale_factor
        self.register_constant("factors", factors.unsqueeze(1))

    def forward(
        self,
        atomic_numbers: torch.Tensor,
        edge_scalars: torch.Tensor,
        edge_index: torch.Tensor,
        wigner: torch.Tensor,
        num_nodes: int,
        order: EdgeOrder | None = None,
        envelope: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed the neighbourhoods.

        Parameters
        ----------
        atomic_numbers : Tensor [N], integer
            Elements of the nodes.
        edge_scalars : Tensor [E, num_distance_basis]
            Expanded distances.
        edge_index : Tensor [2, E]
            Row 0 sources, row 1 targets.
        wigner : Tensor [E, R, (lmax+1)**2]
            From :class:`est_ocp.nn.edge_frame.EdgeFrame`.
        num_nodes : int
            Number of nodes, N.
        order : EdgeOrder, optional
            Edges sorted by their ends: allows a fused kernel on GPUs.
        envelope : Tensor [E], optional
            Multiplies the edges, see :class:`est_ocp.nn.PolynomialEnvelope`.

        Returns
        -------
        Tensor [N, (lmax+1)**2, channels]
        """
        weights = self.radial(edge_scalars, atomic_numbers, edge_index)
        weights = weights.reshape(-1, self.lmax + 1, self.channels)
        if envelope is not None:
            weights = weights * envelope[:, None, None].to(weights.dtype)
        # The rows of m = 0 come first in the order-major layout.
        rows = wigner[:, : self.lmax + 1].to(weights.dtype)
        return sum_from_frames(weights, rows, edge_index, num_nodes, order) * self.factors

    def extra_repr(self) -> str:
        return f"channels={self.channels}, lmax={self.lmax}, rescale_factor={self.rescale_factor}"
