"""SchNet as a fairchem backbone: an invariant baseline for comparisons.

The layers are torch_geometric's (SchNet, arXiv 1706.08566); the graph is est-ocp's, so that
periodic images are neighbours too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.uma.escn_md import GradRegressConfig
from torch import nn
from torch_geometric.nn.models.schnet import InteractionBlock

from est_ocp.errors import ConfigError
from est_ocp.models.graph import RadiusGraph
from est_ocp.models.interface import FairchemBackbone
from est_ocp.models.settings import GraphSettings, from_mapping
from est_ocp.nn import GaussianBasis


def _drop_second_names(
    module: nn.Module, state: dict[str, torch.Tensor], prefix: str, *_: Any
) -> None:
    """Leave out the second names that earlier checkpoints have for the filters' networks."""
    for number in range(len(module.blocks)):
        for name in [n for n in state if n.startswith(f"{prefix}blocks.{number}.mlp.")]:
            del state[name]


@registry.register_model("est_schnet")
class SchNetBaseline(FairchemBackbone):
    """SchNet's continuous-filter convolutions on a periodic radius graph, for energies alone.

    Parameters
    ----------
    channels : int
        Width of the atoms' features.
    filter_channels : int
        Width of the filters.
    num_layers : int
        Interaction blocks.
    num_distance_basis : int
        Gaussians between 0 and the cutoff, their width the spacing.
    max_num_elements : int
        Atomic numbers must be below this.
    graph : mapping, optional
        See :class:`est_ocp.models.settings.GraphSettings`; the cutoff is 6 Angstrom and the number
        of neighbours 50 unless given.
    weight_init : {"uniform", "normal"}
        Initialisation of the linear maps of the heads; the layers keep torch_geometric's own.
    otf_graph : bool
        Build graphs on the fly (True), or use the data's ``edge_index``.
    """

    capturable = True

    def __init__(
        self,
        channels: int = 384,
        filter_channels: int = 128,
        num_layers: int = 4,
        num_distance_basis: int = 100,
        max_num_elements: int = 90,
        graph: Mapping[str, Any] | GraphSettings | None = None,
        weight_init: str = "uniform",
        otf_graph: bool = True,
        **unknown: Any,
    ) -> None:
        super().__init__()
        self.refuse_unknown_keys(unknown)
        if graph is None or isinstance(graph, Mapping):
            graph = {"cutoff": 6.0, "max_neighbors": 50} | dict(graph or {})
        self.graph_settings = from_mapping(GraphSettings, graph, "model.backbone.graph")
        self.channels = channels
        self.max_num_elements = max_num_elements
        self.weight_init = weight_init
        self.regress_config = GradRegressConfig(direct_forces=True, forces=False)
        self.radius_graph = RadiusGraph(self.graph_settings, otf_graph)

        cutoff = self.graph_settings.cutoff
        self.atom_embedding = nn.Embedding(max_num_elements, channels)
        self.distance_basis = GaussianBasis(cutoff, num_distance_basis, width=1.0)
        self.blocks = nn.ModuleList(
            InteractionBlock(channels, num_distance_basis, filter_channels, cutoff)
            for _ in range(num_layers)
        )
        for block in self.blocks:
            # Its convolution holds the same network; checkpoints of training cannot hold it twice.
            del block.mlp
        self.register_load_state_dict_pre_hook(_drop_second_names)

    @classmethod
    def build_inference_settings(cls, settings) -> dict[str, Any]:
        """Overrides for inference; SchNet keeps so little that it has no checkpointing to set.

        Raises
        ------
        ConfigError
            If activation checkpointing is asked for.
        """
        overrides = super().build_inference_settings(settings)
        if overrides.pop("activation_checkpointing", False):
            raise ConfigError("SchNetBaseline has no activation checkpointing; switch it off")
        return overrides

    def forward(self, data) -> dict[str, Any]:
        """Embed a batch of systems (fairchem ``AtomicData``).

        Returns
        -------
        dict
            ``node_embedding`` [N, 1, C], scalars; ``edge_index`` [2, E]; ``atomic_numbers`` [N];
            ``batch`` [N].
        """
        atomic_numbers = data.atomic_numbers.long()
        if not atomic_numbers.is_cuda:
            self.check_elements(atomic_numbers)
        graph = self.radius_graph(data)
        edges = self.distance_basis(graph.distance)
        x = self.atom_embedding(atomic_numbers)
        edges = edges.to(x.dtype)
        distance = graph.distance.to(x.dtype)
        # torch_geometric's cosine cutoff and sums stay in float32 or better.
        with torch.autocast(x.device.type, enabled=False):
            for block in self.blocks:
                x = x + block(x, graph.edge_index, distance, edges)
        return {
            "node_embedding": x[:, None],
            "edge_index": graph.edge_index,
            "atomic_numbers": atomic_numbers,
            "batch": data.batch,
        }
