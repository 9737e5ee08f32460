"""Networks from an edge's invariants (distance, the two elements) to weights."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from est_ocp.errors import ConfigError


class RadialMLP(nn.Module):
    """Linear layers with LayerNorm and SiLU between them.

    Parameters
    ----------
    channels : list of int
        Widths from input to output, at least two.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ConfigError(f"a radial network needs input and output widths, got {channels}")
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(channels[:-1]):
            layers += [nn.Linear(width_in, width_out), nn.LayerNorm(width_out), nn.SiLU()]
        layers.append(nn.Linear(channels[-2], channels[-1]))
        self.net = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x`` [E, channels[0]] to [E, channels[-1]]."""
        return self.net(x)


class ElementRadialMLP(nn.Module):
    """RadialMLP of the expanded distance and embeddings of the source and target elements.

    The first layer sees ``[distance basis, source embedding, target embedding]``. Its element
    columns are applied once a node rather than once an edge and then gathered: the same function,
    without building the concatenated input of every edge.

    Parameters
    ----------
    num_distance_basis : int
        Width of the expanded distance.
    edge_channels : int
        Width of each element embedding and of the two hidden layers.
    out_channels : int
        Number of outputs an edge.
    max_num_elements : int
        Atomic numbers must be below this.
    """

    def __init__(
        self,
        num_distance_basis: int,
        edge_channels: int,
        out_channels: int,
        max_num_elements: int,
    ) -> None:
        super().__init__()
        self.num_distance_basis = num_distance_basis
        self.edge_channels = edge_channels
        self.source_embedding = nn.Embedding(max_num_elements, edge_channels)
        self.target_embedding = nn.Embedding(max_num_elements, edge_channels)
        # Small embeddings: at the start the weights depend on the distance alone.
        nn.init.uniform_(self.source_embedding.weight, -0.001, 0.001)
        nn.init.uniform_(self.target_embedding.weight, -0.001, 0.001)
        width_in = num_distance_basis + 2 * edge_channels
        self.mlp = RadialMLP([width_in, edge_channels, edge_channels, out_channels])

    def forward(
        self,
        edge_scalars: torch.Tensor,
        atomic_numbers: torch.Tensor,
        edge_index: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the outputs [E, out_channels] of every edge; parameters as for `hidden`."""
        return self.last(self.hidden(edge_scalars, atomic_numbers, edge_index))

    @property
    def last(self) -> nn.Linear:
        """The last linear map, from hidden features to outputs."""
        return self.mlp.net[-1]

    def hidden(
        self,
        edge_scalars: torch.Tensor,
        atomic_numbers: torch.Tensor,
        edge_index: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the features of every edge before the last linear map.

        Parameters
        ----------
        edge_scalars : Tensor [E, num_distance_basis]
            Expanded distances.
        atomic_numbers : Tensor [N], integer
            Elements of the nodes.
        edge_index : Tensor [2, E]
            Row 0 sources, row 1 targets.

        Returns
        -------
        Tensor [E, edge_channels]
        """
        first = self.mlp.net[0]
        sizes = [self.num_distance_basis, self.edge_channels, self.edge_channels]
        of_distance, of_source, of_target = first.weight.split(sizes, dim=1)
        source = functional.linear(self.source_embedding(atomic_numbers), of_source)
        target = functional.linear(self.target_embedding(atomic_numbers), of_target)
        hidden = functional.linear(edge_scalars, of_distance, first.bias)
        hidden = hidden + source[edge_index[0]] + target[edge_index[1]]
        return self.mlp.net[1:-1](hidden)
