"""Flat tensors of many molecules, from which a batch is cut without a loop over molecules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from fairchem.core.datasets.atomic_data import AtomicData

from est_ocp.data.qm9_molecules import Molecules
from est_ocp.models.graph import EDGE_INDEX, EDGE_VEC


@dataclass
class MoleculeTensors:
    """M molecules, N atoms, E edges (none if they are not precomputed).

    Attributes
    ----------
    index : Tensor [M], int32
        QM9's numbers: the identifiers.
    natoms, nedges : Tensor [M], int64
    atom_start, edge_start : Tensor [M], int64
        Where a molecule's atoms and edges begin.
    numbers : Tensor [N], uint8
    pos : Tensor [N, 3], float32
    label : Tensor [M] or [M, T], float32
    source, target : Tensor [E], uint8
        Ends of the edges, numbered in the molecule.
    """

    index: torch.Tensor
    natoms: torch.Tensor
    nedges: torch.Tensor
    numbers: torch.Tensor
    pos: torch.Tensor
    label: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor

    def __post_init__(self) -> None:
        self.atom_start = self.natoms.cumsum(0) - self.natoms
        self.edge_start = self.nedges.cumsum(0) - self.nedges
        self.has_edges = bool(self.source.numel())

    @classmethod
    def of(
        cls,
        molecules: Molecules,
        labels: np.ndarray,
        edges: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
    ) -> MoleculeTensors:
        """Build from molecules, labels and :func:`est_ocp.data.qm9_edges.radius_edges`."""
        if edges is None:
            empty = np.zeros(0, dtype=np.uint8)
            edges = (empty, empty, np.zeros(len(molecules), dtype=np.int64))
        source, target, nedges = edges
        arrays = (
            molecules.index,
            molecules.natoms.astype(np.int64),
            nedges,
            molecules.numbers,
            molecules.pos,
            labels.astype(np.float32),
            source,
            target,
        )
        return cls(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))

    @classmethod
    def concatenate(cls, parts: list[MoleculeTensors]) -> MoleculeTensors:
        """Join several; one alone is returned as it is."""
        if len(parts) == 1:
            return parts[0]
        names = ("index", "natoms", "nedges", "numbers", "pos", "label", "source", "target")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def batch(self, chosen: torch.Tensor, datasets: list[str]) -> AtomicData:
        """Return molecules as one fairchem batch.

        Parameters
        ----------
        chosen : Tensor [B], int64
        datasets : list of str
            The dataset's name of each, as tasks know it.

        Returns
        -------
        AtomicData
            With ``target`` [B] or [B, T], ``sample_id`` [B], ``sid`` (QM9's numbers as text), and
            the graph under the names of :mod:`est_ocp.models.graph` if edges are precomputed.
        """
        natoms = self.natoms[chosen]
        total = int(natoms.sum())
        batch = torch.arange(len(chosen)).repeat_interleave(natoms, output_size=total)
        first = natoms.cumsum(0) - natoms
        atoms = torch.arange(total) + (self.atom_start[chosen] - first)[batch]
        count = len(chosen)
        data = AtomicData(
            pos=self.pos[atoms],
            atomic_numbers=self.numbers[atoms].long(),
            cell=torch.zeros(count, 3, 3),
            pbc=torch.zeros(count, 3, dtype=torch.bool),
            natoms=natoms,
            edge_index=torch.empty(2, 0, dtype=torch.long),
            cell_offsets=torch.empty(0, 3),
            nedges=torch.zeros(count, dtype=torch.long),
            charge=torch.zeros(count, dtype=torch.long),
            spin=torch.zeros(count, dtype=torch.long),
            fixed=torch.zeros(total, dtype=torch.long),
            tags=torch.zeros(total, dtype=torch.long),
            batch=batch,
            sid=[str(number) for number in self.index[chosen].tolist()],
            dataset=datasets,
        )
        data.target = self.label[chosen]
        data.sample_id = chosen
        if self.has_edges:
            data[EDGE_INDEX] = self._edges(chosen, first)
            data[EDGE_VEC] = data.pos[data[EDGE_INDEX][0]] - data.pos[data[EDGE_INDEX][1]]
        return data

    def _edges(self, chosen: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Return edges [2, E] of molecules whose atoms begin at ``first`` in the batch."""
        nedges = self.nedges[chosen]
        total = int(nedges.sum())
        owner = torch.arange(len(chosen)).repeat_interleave(nedges, output_size=total)
        skip = self.edge_start[chosen] - (nedges.cumsum(0) - nedges)
        places = torch.arange(total) + skip[owner]
        return torch.stack([self.source[places], self.target[places]]) + first[owner]
