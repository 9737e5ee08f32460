"""Batches filled up to one of few sizes, so that many of them share a shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from est_ocp.models.graph import Graph

#: Sizes of atoms are multiples of this.
ATOM_STEP = 8

#: Fewest edges of a padded batch, and the smallest step between two sizes.
EDGE_STEP = 64

#: Edges of one atom of the filling in a size of the batch's own; several times as many in a larger.
EDGES_PER_ATOM = 64

#: Length of the filling's edges, Angstrom: beyond any cutoff, so that messages over them fade.
#: Within the cutoff the features of these atoms, whose many edges all point the same way, could
#: grow beyond all numbers; times gradients of zero they would make those of the weights NaN.
FILLING_DISTANCE = 100.0

#: Smallest steps of atoms and structures between two of the coarse sizes of training batches.
COARSE_ATOM_STEP, COARSE_GRAPH_STEP = 32, 4


def _up(value: int, step: int) -> int:
    """The next multiple of a step."""
    return -(-value // step) * step


def _share(value: int, bits: int) -> int:
    """A power of two that is at most ``value / 2**(bits - 1)`` and more than half of that."""
    return 1 << max(value.bit_length() - bits, 0)


@dataclass(frozen=True)
class PaddedSize:
    """Size of a padded batch.

    Attributes
    ----------
    atoms, edges : int
        With the filling.
    graphs : int
        Structures, the filling's own included: the last ones, at least one.
    hubs : int
        How many of the last atoms the filling's edges connect.
    """

    atoms: int
    edges: int
    graphs: int
    hubs: int

    @classmethod
    def of(cls, atoms: int, edges: int, graphs: int) -> PaddedSize:
        """Return the smallest size that holds a batch.

        Numbers of edges go up in steps of 3 to 6%, so that a trajectory meets one or two.
        """
        step = max(EDGE_STEP, _share(edges, 5))
        hubs = -(-step // EDGES_PER_ATOM)
        return cls(_up(atoms + hubs, ATOM_STEP), max(step, _up(edges, step)), graphs + 1, hubs)

    @classmethod
    def coarse(cls, atoms: int, edges: int, graphs: int) -> PaddedSize:
        """Return a size that holds a batch and many others, in steps of 3 to 6%.

        Structures are rounded up too, since batches of a limited number of atoms, and the last
        one of an epoch, differ in it.
        """
        step = max(EDGE_STEP, _share(edges, 5))
        hubs = -(-step // EDGES_PER_ATOM)
        padded_graphs = _up(graphs + 1, max(COARSE_GRAPH_STEP, _share(graphs, 3)))
        filling = max(hubs, padded_graphs - graphs)
        atom_step = max(COARSE_ATOM_STEP, _share(atoms, 5))
        return cls(
            _up(atoms + filling, atom_step), max(step, _up(edges, step)), padded_graphs, hubs
        )

    def holds(self, atoms: int, edges: int, graphs: int) -> bool:
        """Whether a batch fits, with one atom or more in each structure of the filling."""
        filling = max(self.hubs, self.graphs - graphs)
        return graphs < self.graphs and edges <= self.edges and atoms + filling <= self.atoms

    def close_to(self, atoms: int, edges: int, graphs: int, share: float) -> bool:
        """Whether this is no larger than a batch's coarse size, or than the batch by a share."""
        own = self.coarse(atoms, edges, graphs)
        return self.atoms <= max(own.atoms, (1.0 + share) * atoms) and (
            self.edges <= max(own.edges, (1.0 + share) * edges)
        )


@dataclass
class PaddedBatch:
    """What models read of a batch, under the names of fairchem's ``AtomicData``.

    Attributes
    ----------
    pos : Tensor [N, 3]
    atomic_numbers, batch : Tensor [N], int64
    natoms : Tensor [B], int64
    graph_edge_index, graph_edge_vec : Tensor [2, E] and [E, 3]
        The graph, where :class:`est_ocp.models.graph.RadiusGraph` looks for it.
    """

    pos: torch.Tensor
    atomic_numbers: torch.Tensor
    batch: torch.Tensor
    natoms: torch.Tensor
    graph_edge_index: torch.Tensor
    graph_edge_vec: torch.Tensor

    def __contains__(self, key: str) -> bool:
        return key in self.__dataclass_fields__

    def __getitem__(self, key: str) -> torch.Tensor:
        return getattr(self, key)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(vars(self).items())

    def values(self) -> list[torch.Tensor]:
        """All tensors."""
        return list(vars(self).values())


class Padding:
    """Fill batches up to a size with hydrogen atoms of structures of their own.

    The filling's edges connect the last of its atoms among themselves: no atom of the batch has
    anything to do with them, so its results do not change. Each structure of the filling has an
    atom, so that a mean over its atoms is a number, and the last one all others.

    Parameters
    ----------
    size : PaddedSize
    like : Tensor
        Of the positions' type, on their device.
    """

    def __init__(self, size: PaddedSize, like: torch.Tensor) -> None:
        self.size = size
        integers = {"dtype": torch.int64, "device": like.device}
        self.pos = like.new_zeros(size.atoms, 3)
        self.atomic_numbers = torch.ones(size.atoms, **integers)
        # From the number of a batch's structures on: a structure an atom, then the last one.
        self.batch = torch.arange(size.graphs + size.atoms, **integers).clamp_(max=size.graphs - 1)
        self.single = torch.ones(size.graphs, **integers)
        # In groups that share a target, as the edges of the batch.
        hub = torch.arange(size.edges, **integers) // EDGES_PER_ATOM % size.hubs
        first = size.atoms - size.hubs
        self.edge_index = torch.stack((first + (hub + 1) % size.hubs, first + hub))
        self.vec = like.new_full((size.edges, 3), FILLING_DISTANCE / math.sqrt(3.0))

    def __call__(self, data: Any, graph: Graph, out: PaddedBatch | None = None) -> PaddedBatch:
        """Return the padded batch.

        Parameters
        ----------
        data : AtomicData
            That the size holds.
        graph : Graph
            Of `data`.
        out : PaddedBatch, optional
            An earlier result of the same size, to be overwritten.
        """
        spare_atoms = self.size.atoms - data.pos.shape[0]
        spare_edges = self.size.edges - graph.vec.shape[0]
        graphs = data.natoms.numel()
        spare_graphs = self.size.graphs - graphs
        last = data.natoms.new_full((1,), spare_atoms - spare_graphs + 1)
        parts = {
            "pos": (data.pos, self.pos[:spare_atoms]),
            "atomic_numbers": (data.atomic_numbers.long(), self.atomic_numbers[:spare_atoms]),
            "batch": (data.batch, self.batch[graphs : graphs + spare_atoms]),
            "natoms": (data.natoms, self.single[: spare_graphs - 1], last),
            "graph_edge_vec": (graph.vec, self.vec[:spare_edges]),
        }
        edges = (graph.edge_index, self.edge_index[:, :spare_edges])
        if out is None:
            joint = {name: torch.cat(pair) for name, pair in parts.items()}
            return PaddedBatch(**joint, graph_edge_index=torch.cat(edges, dim=1))
        for name, pair in parts.items():
            torch.cat(pair, out=out[name])
        torch.cat(edges, dim=1, out=out.graph_edge_index)
        return out

    def rows(self, output: torch.Tensor, atoms: int, graphs: int) -> int:
        """Rows of an output, one for each atom or each structure, that are a batch's own."""
        return atoms if output.shape[0] == self.size.atoms else graphs

    def unpad(self, outputs: Any, atoms: int, graphs: int) -> Any:
        """Return copies of the outputs of a batch of so many atoms and structures.

        Parameters
        ----------
        outputs : nested dict of Tensor
            A row for each atom, or each structure, of the padded batch.
        atoms, graphs : int
        """
        if isinstance(outputs, dict):
            return {name: self.unpad(value, atoms, graphs) for name, value in outputs.items()}
        return outputs[: self.rows(outputs, atoms, graphs)].clone()
