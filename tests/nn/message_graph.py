"""A small random graph and the blocks that act on it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from est_ocp.nn.edge_frame import EdgeFrame
from est_ocp.nn.graph_attention import EquiformerV2Attention
from est_ocp.nn.radial_basis import GaussianBasis
from est_ocp.sphere import make_rule
from tests.nn.rotations import rotate

NUM_BASIS = 16


@dataclass(frozen=True)
class MessageGraph:
    """Inputs of a message block."""

    x: torch.Tensor
    atomic_numbers: torch.Tensor
    edge_index: torch.Tensor
    edge_vec: torch.Tensor
    lmax: int
    mmax: int

    @property
    def scalars(self) -> torch.Tensor:
        basis = GaussianBasis(5.0, NUM_BASIS).to(self.edge_vec.dtype)
        return basis(self.edge_vec.norm(dim=1))

    @property
    def wigner(self) -> torch.Tensor:
        return EdgeFrame(self.lmax, self.mmax)(self.edge_vec)

    def arguments(self) -> tuple[torch.Tensor, ...]:
        return self.x, self.atomic_numbers, self.scalars, self.edge_index, self.wigner

    def rotated(self, rotation: torch.Tensor) -> MessageGraph:
        x = rotate(self.x, rotation, self.lmax)
        return replace(self, x=x, edge_vec=self.edge_vec @ rotation.T)


def make_graph(
    nodes: int = 5,
    edges: int = 20,
    channels: int = 4,
    lmax: int = 3,
    mmax: int = 2,
    dtype: torch.dtype = torch.float64,
) -> MessageGraph:
    """Random graph whose last node has no edges."""
    generator = torch.Generator().manual_seed(0)
    return MessageGraph(
        torch.randn(nodes, (lmax + 1) ** 2, channels, generator=generator, dtype=dtype),
        torch.randint(1, 90, (nodes,), generator=generator),
        torch.randint(0, nodes - 1, (2, edges), generator=generator),
        1.5 * torch.randn(edges, 3, generator=generator, dtype=dtype),
        lmax,
        mmax,
    )


def make_attention(
    graph: MessageGraph, num_points: int = 50, out_channels: int = 4, **options
) -> EquiformerV2Attention:
    """Attention for a graph, with parameters far from their special initial values."""
    torch.manual_seed(0)
    attention = EquiformerV2Attention(
        channels=graph.x.shape[2],
        hidden_channels=4,
        num_heads=2,
        alpha_channels=3,
        value_channels=2,
        lmax=graph.lmax,
        mmax=graph.mmax,
        max_num_elements=90,
        edge_channels=6,
        num_distance_basis=NUM_BASIS,
        out_channels=out_channels,
        rule=make_rule("lebedev", num_points),
        **options,
    ).to(graph.x.dtype)
    for name, parameter in attention.named_parameters():
        if name.endswith("bias") or "embedding" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.5)
    return attention
