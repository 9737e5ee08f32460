"""fairchem's EScAIP beside ours: same graph, same energy head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fairchem.core.models.escaip.custom_types import GraphAttentionData
from fairchem.core.models.escaip.EScAIP import EScAIPBackbone
from fairchem.core.models.escaip.utils.graph_utils import (
    get_attn_mask_env,
    get_compact_frequency_vectors,
    get_node_direction_expansion_neighbor,
)
from fairchem.core.models.escaip.utils.radius_graph import (
    envelope_fn,
    safe_norm,
    safe_normalize,
)
from fairchem.core.models.escaip.utils.smearing import GaussianSmearing
from fairchem.core.models.uma.escn_md import GradRegressConfig

from est_ocp.errors import ConfigError
from est_ocp.models.graph import Graph, RadiusGraph
from est_ocp.models.interface import FairchemBackbone
from est_ocp.models.settings import GraphSettings, from_mapping

#: Places in an atom's list beyond ``max_neighbors``: the atom itself, and neighbours at equal
#: distances, which the graph keeps.
_SPARE = 1


class EScAIPBaseline(FairchemBackbone, EScAIPBackbone):
    """EScAIP (arXiv 2410.24169): attention among the neighbours of each atom; for comparisons.

    The layers are fairchem's. Its own search runs structure by structure; here the edges are those
    of the other backbones. Attention to a neighbour fades, as in the original, with its distance
    over the cutoff or its rank over the number of neighbours, whichever is larger. Direct forces
    only: use fairchem's ``EScAIPDirectForceHead``, which is not equivariant.

    Parameters
    ----------
    graph : mapping, optional
        See :class:`est_ocp.models.settings.GraphSettings`.
    otf_graph : bool
        Build graphs on the fly (True), or use the data's ``edge_index``.
    hidden_size, num_layers, num_heads : int
        Width, layers and heads.
    frequencies : sequence of int
        Channels of each head that are multiplied by harmonics of degree 0, 1, ...; their sum is
        ``hidden_size / num_heads``.
    atom_channels, direction_channels, edge_channels : int
        Widths of the embeddings of elements, bond-orientational order and distances.
    num_distance_basis : int
        Gaussians between 0 and the cutoff.
    max_num_elements : int
        Atomic numbers must be below this.
    direct_forces, regress_forces : bool
        Both true, or no forces.

    Raises
    ------
    ConfigError
        If the sizes do not fit each other, or conservative forces are asked for.
    """

    #: How heads initialise their linear maps.
    weight_init = "uniform"

    def __init__(
        self,
        graph: Mapping[str, Any] | GraphSettings | None = None,
        otf_graph: bool = True,
        hidden_size: int = 128,
        num_layers: int = 4,
        num_heads: int = 8,
        frequencies: Sequence[int] = (6, 4, 3, 2, 1),
        atom_channels: int = 64,
        direction_channels: int = 32,
        edge_channels: int = 64,
        num_distance_basis: int = 64,
        max_num_elements: int = 90,
        direct_forces: bool = True,
        regress_forces: bool = True,
        **unknown: Any,
    ) -> None:
        self.refuse_unknown_keys(unknown)
        if not direct_forces:
            raise ConfigError(
                "this EScAIP predicts forces directly; set model.backbone.direct_forces to true"
            )
        if hidden_size % num_heads or sum(frequencies) != hidden_size // num_heads:
            raise ConfigError(
                "model.backbone: the sum of frequencies must be hidden_size / num_heads = "
                f"{hidden_size / num_heads:g}, it is {sum(frequencies)}"
            )
        settings = from_mapping(GraphSettings, graph, "model.backbone.graph")
        EScAIPBackbone.__init__(
            self,
            regress_forces=regress_forces,
            direct_forces=True,
            hidden_size=hidden_size,
            num_layers=num_layers,
            use_compile=False,
            use_padding=False,
            use_pbc=True,
            max_num_elements=max_num_elements,
            max_atoms=1,
            max_batch_size=1,
            max_radius=settings.cutoff,
            knn_k=settings.max_neighbors,
            knn_soft=False,
            knn_sigmoid_scale=0.2,
            knn_lse_scale=0.1,
            knn_use_low_mem=False,
            knn_pad_size=settings.max_neighbors + _SPARE,
            atten_name="memory_efficient",
            atten_num_heads=num_heads,
            atom_embedding_size=atom_channels,
            node_direction_embedding_size=direction_channels,
            edge_distance_expansion_size=num_distance_basis,
            edge_distance_embedding_size=edge_channels,
            freequency_list=list(frequencies),
        )
        self.graph_settings = settings
        self.channels = hidden_size
        self.regress_config = GradRegressConfig(direct_forces=True, forces=regress_forces)
        self.radius_graph = RadiusGraph(settings, otf_graph)
        self.distance_basis = GaussianSmearing(
            0.0, settings.cutoff, num_distance_basis, basis_width_scalar=2.0
        )

    def forward(self, data) -> dict[str, Any]:
        """Embed a batch of systems (fairchem ``AtomicData``).

        Returns
        -------
        dict
            ``node_embedding`` [N, 1, C]; ``edge_index`` [2, E]; ``atomic_numbers`` [N]; ``batch``
            [N]; and what fairchem's heads of EScAIP read: ``node_features`` [N, C],
            ``edge_features`` [N, K, C], ``data``.
        """
        if not data.atomic_numbers.is_cuda:
            self.check_elements(data.atomic_numbers)
        graph = self.radius_graph(data)
        out = self.compiled_forward(self._lists(data, graph))
        return out | {
            "node_embedding": out["node_features"][:, None],
            "edge_index": graph.edge_index,
            "atomic_numbers": data.atomic_numbers,
            "batch": data.batch,
        }

    def _lists(self, data, graph: Graph) -> GraphAttentionData:
        """Return the edges as a list of K neighbours an atom, itself first, nearest first."""
        atoms = data.atomic_numbers.long()
        count, width = len(atoms), self.graph_settings.max_neighbors + _SPARE
        order = torch.argsort(graph.distance)
        order = order[torch.argsort(graph.edge_index[1][order], stable=True)]
        source, target = graph.edge_index[:, order]
        degree = torch.zeros_like(atoms).index_add(0, target, torch.ones_like(target))
        first = degree.cumsum(0) - degree
        rank = torch.arange(len(target), device=target.device) - first[target] + 1
        # Neighbours beyond the list go to a last column, which is cut off.
        place = (target, rank.clamp(max=width))
        itself = torch.arange(count, device=atoms.device)
        vec = graph.vec.new_zeros(count, width + 1, 3).index_put(place, graph.vec[order])
        neighbors = torch.zeros(count, width + 1, dtype=torch.long, device=atoms.device)
        neighbors = neighbors.index_put(place, source)[:, :width]
        neighbors[:, 0] = itself
        # Below 1 for what attention sees; the atom itself at 0.
        fading = graph.vec.new_full((count, width + 1), torch.inf).index_put(
            place,
            torch.maximum(graph.distance[order] / self.cutoff, rank.to(vec.dtype) / width),
        )[:, :width]
        fading[:, 0] = 0.0
        vec = vec[:, :width]
        mask = fading < 1
        direction, distance = safe_normalize(vec), safe_norm(vec)
        gnn = self.gnn_cfg
        return GraphAttentionData(
            atomic_numbers=atoms,
            node_direction_expansion=get_node_direction_expansion_neighbor(
                direction, mask, lmax=gnn.node_direction_expansion_size - 1
            ),
            edge_distance_expansion=self.distance_basis(distance.flatten()).unflatten(
                0, distance.shape
            ),
            edge_direction=direction,
            attn_mask=get_attn_mask_env(envelope_fn(fading), gnn.atten_num_heads),
            angle_embedding=None,
            frequency_vectors=get_compact_frequency_vectors(
                direction, len(gnn.freequency_list) - 1, gnn.freequency_list
            ),
            neighbor_list=neighbors,
            neighbor_mask=mask,
            node_batch=data.batch,
            node_padding_mask=torch.ones_like(mask[:, 0]),
            graph_padding_mask=torch.ones_like(data.natoms, dtype=torch.bool),
        )
