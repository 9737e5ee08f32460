"""Radius graphs for any mixture of periodic and molecular systems.

fairchem's versions 1 and 2 assume atoms inside the cell and a cell of non-zero volume; here atoms
are wrapped along periodic axes first and the axes that are not periodic get unit vectors, so that
slabs, molecules without a cell, wires and crystals all go through the same code. On GPUs, batches
whose structures are not too large take :func:`est_ocp.models.dense_search.dense_search` instead:
the same edges with far fewer operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from fairchem.core.common import gp_utils
from fairchem.core.graph.compute import generate_graph, get_pbc_distances

from est_ocp.errors import ConfigError
from est_ocp.models.dense_search import Edges, dense_search
from est_ocp.models.settings import GraphSettings

#: Keys under which a batch may carry the graph that the model would build.
EDGE_INDEX, EDGE_VEC = "graph_edge_index", "graph_edge_vec"


@dataclass
class Graph:
    """Edges of a batch.

    Attributes
    ----------
    edge_index : Tensor [2, E], int64
        Row 0 sources, row 1 targets.
    vec : Tensor [E, 3]
        ``pos[source] - pos[target]`` with the periodic image, Angstrom.
    distance : Tensor [E]
        Length of ``vec``, Angstrom.
    """

    edge_index: torch.Tensor
    vec: torch.Tensor
    distance: torch.Tensor


def complete_cell(cell: torch.Tensor, pbc: torch.Tensor) -> torch.Tensor:
    """Replace the vectors of the axes that are not periodic by orthonormal ones.

    Parameters
    ----------
    cell : Tensor [B, 3, 3]
        Row ``a`` is lattice vector ``a``, Angstrom. Rows of axes that are not periodic are free
        to be zero.
    pbc : Tensor [B, 3], bool

    Returns
    -------
    Tensor [B, 3, 3]
        The same periodic rows; the others span their orthogonal complement.
    """
    order = torch.argsort((~pbc).to(torch.int8), dim=1, stable=True)
    rows = torch.where(pbc[:, :, None], cell, torch.zeros_like(cell)).detach()
    # Householder QR leaves an orthonormal complement in the columns behind the periodic ones.
    columns = torch.gather(rows, 1, order[:, :, None].expand(-1, -1, 3)).mT
    q = torch.linalg.qr(columns.double(), mode="complete")[0].to(cell.dtype)
    complement = torch.empty_like(q.mT).scatter_(1, order[:, :, None].expand(-1, -1, 3), q.mT)
    return torch.where(pbc[:, :, None], cell, complement)


def wrap_positions(
    pos: torch.Tensor, cell: torch.Tensor, pbc: torch.Tensor, batch: torch.Tensor
) -> torch.Tensor:
    """Translate atoms by lattice vectors into the cell, along periodic axes only.

    Gradients with respect to ``pos`` and ``cell`` pass through: the translation is a constant
    integer combination of lattice vectors.
    """
    inverse = torch.linalg.inv(cell.detach().double())
    fractional = torch.einsum("ni,nij->nj", pos.detach().double(), inverse[batch])
    shift = torch.where(pbc[batch], torch.floor(fractional), torch.zeros_like(fractional))
    return pos - torch.einsum("ni,nij->nj", shift.to(pos.dtype), cell[batch])


class RadiusGraph:
    """Build the radius graph of a fairchem batch.

    Parameters
    ----------
    settings : GraphSettings
    otf_graph : bool
        False uses ``edge_index``, ``cell_offsets`` and ``nedges`` found in the data.
    dense : bool
        Search by all pairs on GPUs where that is faster; False leaves all to fairchem. Versions
        other than 2 are fairchem's in any case.
    """

    def __init__(self, settings: GraphSettings, otf_graph: bool = True, dense: bool = True) -> None:
        self.settings = settings
        self.otf_graph = otf_graph
        self.dense = dense and settings.radius_pbc_version == 2

    def __call__(self, data) -> Graph:
        """Return the :class:`Graph` of ``data`` (fairchem ``AtomicData``)."""
        if gp_utils.initialized():
            raise ConfigError(
                "graph parallelism is not supported by est-ocp backbones; set "
                "job.graph_parallel_group_size to null"
            )
        # Gradients with respect to positions need edges that are functions of them.
        if EDGE_VEC in data and not data.pos.requires_grad:
            vec = data[EDGE_VEC]
            return Graph(data[EDGE_INDEX], vec, torch.linalg.vector_norm(vec, dim=-1))
        # Under autocast fairchem's periodic offsets would be products in bfloat16: errors of 0.1 A.
        with torch.autocast(data.pos.device.type, enabled=False):
            return self._build(data)

    def _build(self, data) -> Graph:
        pbc = self._pbc(data)
        if not self.otf_graph:
            out = get_pbc_distances(
                data.pos,
                data.edge_index,
                data.cell,
                data.cell_offsets,
                data.nedges,
                return_distance_vec=True,
            )
            return Graph(out["edge_index"], out["distance_vec"], out["distances"])
        if self.dense and data.pos.is_cuda:
            edges = self.all_pairs(data, pbc)
            if edges is not None:
                return Graph(*edges, torch.linalg.vector_norm(edges.vec, dim=-1))
        cell = data.cell
        if not bool(pbc.all()):
            cell = complete_cell(cell, pbc)
        system = SimpleNamespace(
            pos=wrap_positions(data.pos, cell, pbc, data.batch),
            cell=cell,
            pbc=pbc,
            natoms=data.natoms,
            batch=data.batch,
        )
        # Where ties are kept, fairchem keeps all up to the (max_neighbors + 1)-th distance.
        one_less = not self.settings.strict_max_neighbors
        out = generate_graph(
            system,
            cutoff=self.settings.cutoff,
            max_neighbors=self.settings.max_neighbors - one_less,
            enforce_max_neighbors_strictly=self.settings.strict_max_neighbors,
            radius_pbc_version=self.settings.radius_pbc_version,
            pbc=pbc,
        )
        return Graph(out["edge_index"], out["edge_distance_vec"], out["edge_distance"])

    def all_pairs(self, data, pbc: torch.Tensor) -> Edges | None:
        """Return the edges by :func:`~est_ocp.models.dense_search.dense_search`, if it can."""
        settings = self.settings
        return dense_search(
            data.pos,
            data.cell,
            pbc,
            data.natoms,
            data.batch,
            settings.cutoff,
            settings.max_neighbors,
            settings.strict_max_neighbors,
        )

    @staticmethod
    def _pbc(data) -> torch.Tensor:
        """Periodicity [B, 3]; data without the field (OC20's LMDBs) are periodic."""
        num_graphs = data.natoms.numel()
        if "pbc" in data:
            return data.pbc.to(torch.bool).view(num_graphs, 3)
        return torch.ones(num_graphs, 3, dtype=torch.bool, device=data.pos.device)
