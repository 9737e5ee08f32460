"""First node features of all degrees from the edges."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.nn.equiformer.depthwise_tensor_product import DepthwiseTensorProduct
from est_ocp.nn.equiformer.layout import IrrepsLayout
from est_ocp.nn.equiformer.linear import IrrepsLinear
from est_ocp.nn.equiformer.radial_profile import RadialProfile
from est_ocp.nn.scatter import scatter_sum


class IrrepsEdgeDegree(nn.Module):
    """Sum over neighbours of trained scalars times harmonics with radial weights.

    The scalars are the same for all nodes; the result says how many neighbours lie where
    (arXiv 2206.11990, section 4.2). The original multiplies zeros of higher degree too; those
    weights, which never learn, do not exist here.

    Parameters
    ----------
    irreps : IrrepsLayout
        Node features.
    lmax_sh : int
        Degree of the edge harmonics.
    radial_channels : list of int
        Widths of the radial network, without its output.
    avg_degree : float
        Average number of neighbours; the sum is divided by its root.
    fused : bool
        As of :class:`DepthwiseTensorProduct`.
    """

    def __init__(
        self,
        irreps: IrrepsLayout,
        lmax_sh: int,
        radial_channels: list[int],
        avg_degree: float,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.irreps = irreps
        self.factor = 1.0 / math.sqrt(avg_degree)
        self.scalars = nn.Parameter(torch.randn(irreps.width(0)))
        self.product = DepthwiseTensorProduct(
            irreps.keep([0]), lmax_sh, [d for d in irreps.degrees if d <= lmax_sh], fused=fused
        )
        self.radial = RadialProfile([*radial_channels, self.product.num_weights])
        self.projection = IrrepsLinear(
            self.product.irreps_out, irreps.keep(self.product.irreps_out.degrees)
        )

    def forward(
        self,
        edge_index: torch.Tensor,
        edge_sh: torch.Tensor,
        edge_scalars: torch.Tensor,
        num_nodes: int,
        envelope: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed the neighbourhoods.

        Parameters
        ----------
        edge_index : Tensor [2, E]
            Row 0 sources, row 1 targets.
        edge_sh : Tensor [E, (lmax_sh+1)**2]
        edge_scalars : Tensor [E, radial_channels[0]]
        num_nodes : int
        envelope : Tensor [E], optional
            Multiplies the edges, see :class:`est_ocp.nn.PolynomialEnvelope`.

        Returns
        -------
        Tensor [num_nodes, irreps.dim]
            Flat; degrees above ``lmax_sh`` are zero, as is a node without edges.
        """
        scalars = self.scalars.expand(edge_sh.shape[0], 1, -1)
        edges = self.projection(self.product([scalars], edge_sh, self.radial(edge_scalars)))
        if envelope is not None:
            edges = [block * envelope[:, None, None].to(block.dtype) for block in edges]
        summed = [scatter_sum(block, edge_index[1], num_nodes) * self.factor for block in edges]
        flat = self.projection.irreps_out.join(summed)
        return nn.functional.pad(flat, (0, self.irreps.dim - flat.shape[1]))

    def extra_repr(self) -> str:
        return f"{self.irreps}"
