"""QM9 as flat tensors on one device, and batches of a fixed size without waiting for it.

Everything about a batch is computed on the device from the numbers of its molecules, so a whole
step of training, the choice of its molecules included, can be recorded once as a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from equivariance.molecules import random_wigner

from est_ocp.data.qm9_edges import radius_edges
from est_ocp.data.qm9_lmdb import read_molecules, read_summary
from est_ocp.data.qm9_molecules import Molecules, composition
from est_ocp.models.padding import PaddedBatch
from est_ocp.qm9_targets import ELEMENTS, TARGETS

#: Cutoff of the QM9 models, Angstrom.
CUTOFF = 5.0
#: Fewest atoms and edges of a batch's filling.
FILLING = 8


@dataclass
class FlatMolecules:
    """M molecules, N atoms and E edges in all.

    Attributes
    ----------
    natoms, nedges : Tensor [M], int64
    numbers : Tensor [N], uint8
    pos : Tensor [N, 3], float32
        Angstrom.
    source, target : Tensor [E], uint8
        Ends of the edges, numbered in the molecule.
    label : Tensor [M], float32
        In the property's unit, references taken off.
    """

    natoms: torch.Tensor
    nedges: torch.Tensor
    numbers: torch.Tensor
    pos: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    label: torch.Tensor

    def __post_init__(self) -> None:
        self.atom_start = self.natoms.cumsum(0) - self.natoms
        self.edge_start = self.nedges.cumsum(0) - self.nedges

    def __len__(self) -> int:
        return len(self.natoms)

    @classmethod
    def read(cls, folder: Path, split: str, property_: str = "alpha") -> FlatMolecules:
        """Read a split of a folder that ``est-ocp data qm9`` wrote."""
        molecules = read_molecules(folder / split / "data.lmdb")
        label = molecules.targets[:, list(TARGETS).index(property_)]
        if TARGETS[property_].has_references:
            stored = read_summary(folder)["references"][property_]
            label = label - composition(molecules) @ np.array([stored[str(z)] for z in ELEMENTS])
        return cls.of(molecules, label)

    @classmethod
    def of(cls, molecules: Molecules, label: np.ndarray) -> FlatMolecules:
        """Find the edges of molecules, and keep everything with labels [M]."""
        source, target, nedges = radius_edges(molecules, CUTOFF)
        arrays = (
            molecules.natoms.astype(np.int64), nedges, molecules.numbers, molecules.pos, source,
            target, label.astype(np.float32),
        )  # fmt: skip
        return cls(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))

    def to(self, device: str) -> FlatMolecules:
        """The same on a device."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))

    def padded_size(self, order: torch.Tensor) -> tuple[int, int]:
        """Atoms and edges that hold every row of ``order`` [steps, B] with a filling."""
        natoms, nedges = self.natoms[order].sum(1).max(), self.nedges[order].sum(1).max()
        return -(-(int(natoms) + FILLING) // 8) * 8, -(-(int(nedges) + FILLING) // 64) * 64

    def batch(self, chosen: torch.Tensor, atoms: int, edges: int) -> PaddedBatch:
        """Molecules ``chosen`` [B] as a batch of B + 1 structures, the last a filling of hydrogen.

        The filling's edges are among its own atoms, so it changes no other result.

        Parameters
        ----------
        chosen : Tensor [B], int64
            On this device.
        atoms, edges : int
            Size of the batch, of :meth:`padded_size`.
        """
        device = chosen.device
        natoms, owner, shift, first = _ranges(self.natoms, self.atom_start, chosen, atoms)
        filling = owner == len(chosen)
        place = torch.arange(atoms, device=device) + shift[owner]
        place = torch.where(filling, 0, place)
        numbers = torch.where(filling, 1, self.numbers[place].long())
        pos = torch.where(filling[:, None], 0.0, self.pos[place])

        _, edge_owner, edge_shift, _ = _ranges(self.nedges, self.edge_start, chosen, edges)
        number = torch.arange(edges, device=device)
        spare = edge_owner == len(chosen)
        place = torch.where(spare, 0, number + edge_shift[edge_owner])
        ends = torch.stack((self.source[place], self.target[place])).long() + first[edge_owner]
        ring = torch.stack((number + 1, number)) % natoms[-1] + first[-1]
        ends = torch.where(spare, ring, ends)
        vec = torch.where(spare[:, None], 1.0, pos[ends[0]] - pos[ends[1]])
        return PaddedBatch(pos, numbers, owner, natoms, ends, vec)

    def tight_batch(self, chosen: torch.Tensor) -> PaddedBatch:
        """The same with the smallest filling; waits for the device."""
        return self.batch(chosen, *self.padded_size(chosen[None]))


def _ranges(
    counts: torch.Tensor, starts: torch.Tensor, chosen: torch.Tensor, total: int
) -> tuple[torch.Tensor, ...]:
    """Counts with the filling's, owner of each of `total` places, shift to the source, first."""
    counts = counts[chosen]
    counts = torch.cat((counts, total - counts.sum(0, keepdim=True)))
    first = counts.cumsum(0) - counts
    numbers = torch.arange(len(counts), device=chosen.device)
    owner = numbers.repeat_interleave(counts, output_size=total)
    shift = torch.nn.functional.pad(starts[chosen], (0, 1)) - first
    return counts, owner, shift, first


def turned(batch: PaddedBatch, generator: torch.Generator) -> PaddedBatch:
    """The batch with one random rotation a structure, in the type of its vectors."""
    rotation = random_wigner(len(batch.natoms), 1, generator, batch.pos.device)[:, 1:4, 1:4]
    rotation = rotation.to(batch.graph_edge_vec.dtype)[batch.batch]
    target = batch.graph_edge_index[1]
    return replace(
        batch,
        pos=(rotation @ batch.pos[:, :, None])[:, :, 0],
        graph_edge_vec=(rotation[target] @ batch.graph_edge_vec[:, :, None])[:, :, 0],
    )


def in_double(batch: PaddedBatch) -> PaddedBatch:
    """The batch with positions and vectors in float64."""
    return replace(batch, pos=batch.pos.double(), graph_edge_vec=batch.graph_edge_vec.double())


def data_order(molecules: int, batch: int, steps: int, seed: int) -> torch.Tensor:
    """Numbers of the molecules of every step, [steps, batch]: a new shuffle each epoch."""
    generator = torch.Generator().manual_seed(seed)
    per_epoch = molecules // batch
    if per_epoch == 0:
        raise SystemExit(f"{molecules} molecules are fewer than a batch of {batch}")
    epochs = [
        torch.randperm(molecules, generator=generator)[: per_epoch * batch].view(-1, batch)
        for _ in range(-(-steps // per_epoch))
    ]
    return torch.cat(epochs)[:steps]


def write_cache(folder: Path, path: Path) -> None:
    """Read both splits and keep them in one file, which workers open at once."""
    splits = {name: FlatMolecules.read(folder, name) for name in ("train", "test")}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        name: {field.name: getattr(split, field.name) for field in fields(split)}
        for name, split in splits.items()
    }
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)


def read_cache(path: str, device: str) -> dict[str, FlatMolecules]:
    """Splits of :func:`write_cache` on a device."""
    content = torch.load(path, weights_only=True)
    return {name: FlatMolecules(**tensors).to(device) for name, tensors in content.items()}
