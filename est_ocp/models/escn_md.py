"""fairchem's eSCN-MD (the backbone of UMA and eSEN) beside ours: same graph, same heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.uma.escn_md import add_n_empty_edges, eSCNMDBackbone

from est_ocp.errors import ConfigError
from est_ocp.models.graph import EDGE_INDEX, EDGE_VEC, RadiusGraph
from est_ocp.models.interface import FairchemBackbone
from est_ocp.models.settings import GraphSettings, from_mapping


@registry.register_model("est_escn_md")
class ESCNMDBaseline(FairchemBackbone, eSCNMDBackbone):
    """eSCN-MD for energies, molecular properties and direct forces: a baseline for comparisons.

    Parameters
    ----------
    graph : mapping, optional
        See :class:`est_ocp.models.settings.GraphSettings`; the cutoff is 5 Angstrom and the number
        of neighbours 500 unless given. Messages always fade to zero at the cutoff.
    otf_graph : bool
        Build graphs on the fly (True), or use the data's ``edge_index``.
    max_num_elements, sphere_channels, hidden_channels, edge_channels, lmax, mmax, num_layers, \
num_distance_basis, norm_type, act_type, ff_type, activation_checkpointing
        As of fairchem's ``eSCNMDBackbone``.
    direct_forces, regress_forces : bool
        Both true where a head predicts forces (fairchem's ``Linear_Force_Head``).

    Raises
    ------
    ConfigError
        If conservative forces are asked for.
    """

    #: How heads initialise their linear maps.
    weight_init = "uniform"

    def __init__(
        self,
        graph: Mapping[str, Any] | GraphSettings | None = None,
        otf_graph: bool = True,
        max_num_elements: int = 90,
        sphere_channels: int = 128,
        hidden_channels: int = 128,
        edge_channels: int = 128,
        lmax: int = 2,
        mmax: int = 2,
        num_layers: int = 4,
        num_distance_basis: int = 64,
        norm_type: str = "rms_norm_sh",
        act_type: str = "gate",
        ff_type: str = "grid",
        activation_checkpointing: bool = False,
        direct_forces: bool = True,
        regress_forces: bool = False,
        **unknown: Any,
    ) -> None:
        self.refuse_unknown_keys(unknown)
        if not direct_forces:
            raise ConfigError(
                "this eSCN-MD predicts forces directly; set model.backbone.direct_forces to true"
            )
        if graph is None or isinstance(graph, Mapping):
            graph = {"cutoff": 5.0, "max_neighbors": 500} | dict(graph or {})
        settings = from_mapping(GraphSettings, graph, "model.backbone.graph")
        eSCNMDBackbone.__init__(
            self,
            max_num_elements=max_num_elements,
            sphere_channels=sphere_channels,
            lmax=lmax,
            mmax=mmax,
            otf_graph=otf_graph,
            max_neighbors=settings.max_neighbors,
            cutoff=settings.cutoff,
            edge_channels=edge_channels,
            num_distance_basis=num_distance_basis,
            direct_forces=True,
            regress_forces=regress_forces,
            num_layers=num_layers,
            hidden_channels=hidden_channels,
            norm_type=norm_type,
            act_type=act_type,
            ff_type=ff_type,
            activation_checkpointing=activation_checkpointing,
            use_dataset_embedding=False,
            always_use_pbc=False,
        )
        self.graph_settings = settings
        self.channels, self.lmax_out = sphere_channels, lmax
        self.radius_graph = RadiusGraph(settings, otf_graph)

    def _generate_graph(self, data) -> dict[str, torch.Tensor]:
        """Return the graph that :meth:`forward` found, under fairchem's names."""
        vec = data[EDGE_VEC]
        graph = {
            "edge_index": data[EDGE_INDEX],
            "edge_distance": torch.linalg.vector_norm(vec, dim=-1),
            "edge_distance_vec": vec,
        }
        if vec.shape[0] == 0:
            # Its layers need an edge; this one is beyond the cutoff.
            add_n_empty_edges(graph, 1, self.cutoff)
        data["scatter_target"] = graph["edge_index"][1]
        return graph

    def forward(self, data) -> dict[str, Any]:
        """Embed a batch of systems (fairchem ``AtomicData``).

        Returns
        -------
        dict
            ``node_embedding`` [N, (lmax+1)**2, C]; ``edge_index`` [2, E]; ``atomic_numbers`` [N];
            ``batch`` [N].
        """
        if not data.atomic_numbers.is_cuda:
            self.check_elements(data.atomic_numbers)
        graph = self.radius_graph(data)
        data[EDGE_INDEX], data[EDGE_VEC] = graph.edge_index, graph.vec
        out = eSCNMDBackbone.forward(self, data)
        return {
            "node_embedding": out["node_embedding"],
            "edge_index": graph.edge_index,
            "atomic_numbers": data.atomic_numbers,
            "batch": data.batch,
        }
