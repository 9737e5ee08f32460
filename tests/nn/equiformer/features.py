"""Random features and edges for the tests of Equiformer's layers."""

from __future__ import annotations

import torch

from est_ocp.nn.equiformer import EquiformerAttention, IrrepsLayout, edge_harmonics
from tests.nn.equiformer.original import rotate_flat

IRREPS = IrrepsLayout("6x0e+4x1e+2x2e")
NUM_NODES = 7


def flat(layout: IrrepsLayout, num: int, seed: int = 0) -> torch.Tensor:
    """Normal flat features [num, dim], float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, layout.dim, generator=generator, dtype=torch.float64)


def edges(
    lmax_sh: int = 2, num_basis: int = 5, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Edges of a complete graph among the first six of seven nodes; the last is isolated."""
    source, target = torch.combinations(torch.arange(NUM_NODES - 1)).T
    edge_index = torch.stack((torch.cat((source, target)), torch.cat((target, source))))
    vec = flat(IrrepsLayout("1x1e"), edge_index.shape[1], seed + 1)
    scalars = flat(IrrepsLayout("1x0e").times(num_basis), edge_index.shape[1], seed + 2)
    return edge_index, edge_harmonics(vec, vec.norm(dim=1), lmax_sh), scalars


def no_edges(lmax_sh: int = 2, num_basis: int = 5) -> tuple[torch.Tensor, ...]:
    """A graph without edges."""
    empty = torch.zeros(0, (lmax_sh + 1) ** 2, dtype=torch.float64)
    return torch.zeros(2, 0, dtype=torch.long), empty, empty.new_zeros(0, num_basis)


def rotated_edges(edge: tuple, rotation: torch.Tensor) -> tuple:
    """The edges with their harmonics turned."""
    edge_index, edge_sh, scalars = edge
    harmonics = IrrepsLayout.uniform(1, round(edge_sh.shape[1] ** 0.5) - 1)
    return edge_index, rotate_flat(edge_sh, harmonics, rotation), scalars


def attention(irreps_out: IrrepsLayout = IRREPS, seed: int = 0, **options) -> EquiformerAttention:
    """A small attention in evaluation mode, float64, 3 heads."""
    torch.manual_seed(seed)
    return (
        EquiformerAttention(
            IRREPS,
            irreps_out,
            IrrepsLayout("5x0e+3x1e+2x2e"),
            IrrepsLayout("4x0e+2x1e+1x2e"),
            num_heads=3,
            lmax_sh=2,
            radial_channels=[5, 8, 8],
            **options,
        )
        .double()
        .eval()
    )
