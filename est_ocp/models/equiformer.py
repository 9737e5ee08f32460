"""Equiformer-type backbones for fairchem's energy tasks: with the EST update, and with their own.

Message passing is Equiformer's graph attention over irreps of unequal widths (arXiv 2206.11990);
what follows it in each layer is a subclass's choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.uma.escn_md import GradRegressConfig
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.models.distance_basis import make_distance_basis
from est_ocp.models.equiformer_v2 import AVG_DEGREE
from est_ocp.models.graph import RadiusGraph
from est_ocp.models.layer_call import LayerCall
from est_ocp.models.layered import LayeredBackbone
from est_ocp.models.position_head import VectorAttention
from est_ocp.models.settings import (
    FeedForwardSettings,
    GraphSettings,
    IrrepsMessageSettings,
    UpdateSettings,
    from_mapping,
)
from est_ocp.models.tags import NUM_TAGS, check_tags
from est_ocp.nn.envelope import PolynomialEnvelope
from est_ocp.nn.equiformer import (
    EquiformerAttention,
    EquiformerBlock,
    IrrepsEdgeDegree,
    IrrepsESTUpdate,
    IrrepsFeedForward,
    IrrepsLayerNorm,
    IrrepsLayout,
    edge_harmonics,
)


class EquiformerBackbone(LayeredBackbone):
    """Equiformer's message passing with an update block to be chosen by a subclass.

    Inside, node features are flat irreps; the output is ``[N, (lmax_out+1)**2, channels]`` with
    ``channels = feature_channels``, e3nn's convention, component normalised. Energies only:
    forces are not trained with these models (Equiformer's IS2RE setting).

    Parameters
    ----------
    irreps : str
        Node features between layers.
    lmax_sh : int
        Degree of the edges' spherical harmonics.
    num_layers : int
    feature_channels : int
        Channels of each degree after the last layer.
    lmax_out : int
        Highest degree after the last layer: 0 for energies, 1 where a head predicts vectors.
    max_num_elements : int
        Atomic numbers must be below this.
    graph, message, update : mapping, optional
        See :mod:`est_ocp.models.settings`; the graph's defaults are 5 Angstrom and 500 neighbours.
    distance_basis : {"gaussian", "bessel"}
        Radial basis: Gaussians with trained centres and widths, or spherical Bessel functions.
    num_distance_basis : int
        Size of the radial basis.
    use_tags : bool
        Embed the atoms' tags (OC20: 0, 1, 2). False for molecules, which have none.
    alpha_drop, drop_path : float
        Dropout of attention weights, and of whole residual branches.
    avg_degree : float
        Average number of neighbours; the edge-degree embedding is divided by its root.
    direct_forces, regress_forces : bool
        As of the other backbones; forces cannot be asked for.
    activation_checkpointing : bool
        Recompute layers in the backward pass: less memory, about a third more time.
    compile_layers : {"never", "training", "always"}
        Compile first features, layers and the head of vectors on GPUs, see
        :class:`est_ocp.models.layer_call.LayerCall`.
    memory_budget : float
        Share of the activations that compiled layers keep for the backward pass.
    fused_kernels : bool
        Triton kernels on GPUs, in half precision or where TF32 is allowed, and the search for
        neighbours by all pairs.
    otf_graph : bool
        Build graphs on the fly (True), or use the data's ``edge_index``.
    """

    update_settings: type

    #: How heads initialise their linear maps: as this backbone's, of variance 1/fan-in.
    weight_init = "normal"

    def __init__(
        self,
        irreps: str = "256x0e+128x1e",
        lmax_sh: int = 1,
        num_layers: int = 6,
        feature_channels: int = 512,
        lmax_out: int = 0,
        max_num_elements: int = 90,
        graph: Mapping[str, Any] | GraphSettings | None = None,
        message: Mapping[str, Any] | IrrepsMessageSettings | None = None,
        update: Mapping[str, Any] | None = None,
        distance_basis: str = "gaussian",
        num_distance_basis: int = 128,
        use_tags: bool = True,
        alpha_drop: float = 0.2,
        drop_path: float = 0.0,
        avg_degree: float = AVG_DEGREE,
        direct_forces: bool = True,
        regress_forces: bool = False,
        activation_checkpointing: bool = False,
        compile_layers: str = "never",
        memory_budget: float = 1.0,
        fused_kernels: bool = True,
        otf_graph: bool = True,
        **unknown: Any,
    ) -> None:
        super().__init__(LayerCall(compile_layers, memory_budget), activation_checkpointing)
        self.refuse_unknown_keys(unknown)
        if regress_forces or not direct_forces:
            raise ConfigError(
                "model.backbone: Equiformer backbones predict energies, not forces; leave "
                "regress_forces false and direct_forces true, or use est_ocp.models.EquiformerV2EST"
            )
        if num_layers < 1 or feature_channels < 1:
            raise ConfigError("model.backbone: num_layers and feature_channels must be positive")
        self.layout = IrrepsLayout(irreps)
        if self.layout.degrees[0] != 0 or not 0 <= lmax_out <= self.layout.degrees[-1]:
            raise ConfigError(
                f"model.backbone: irreps must have scalars and lmax_out ({lmax_out}) must not "
                f"exceed their highest degree, got {irreps}"
            )
        self.layout_out = IrrepsLayout.uniform(feature_channels, lmax_out)
        self.channels, self.lmax_out = feature_channels, lmax_out
        self.lmax_sh = lmax_sh
        self.alpha_drop = alpha_drop
        self.fused_kernels = fused_kernels
        self.max_num_elements = max_num_elements
        self.regress_config = GradRegressConfig(direct_forces=True, forces=False)
        if graph is None or isinstance(graph, Mapping):
            graph = {"cutoff": 5.0, "max_neighbors": 500} | dict(graph or {})
        self.graph_settings = from_mapping(GraphSettings, graph, "model.backbone.graph")
        self.message_settings = from_mapping(
            IrrepsMessageSettings, message, "model.backbone.message"
        )
        settings = from_mapping(self.update_settings, update, "model.backbone.update")
        self.radius_graph = RadiusGraph(self.graph_settings, otf_graph, dense=fused_kernels)

        self.radial_channels = [num_distance_basis, *self.message_settings.radial_channels]
        self.distance_basis = make_distance_basis(
            distance_basis, self.graph_settings.cutoff, num_distance_basis
        )
        self.envelope = None
        if self.graph_settings.envelope:
            self.envelope = PolynomialEnvelope(self.graph_settings.cutoff)
        self.atom_embedding = nn.Embedding(max_num_elements, self.layout.width(0))
        self.tag_embedding = nn.Embedding(NUM_TAGS, self.layout.width(0)) if use_tags else None
        # Padded batches carry no tags.
        self.capturable = not use_tags
        self.edge_degree_embedding = IrrepsEdgeDegree(
            self.layout, lmax_sh, self.radial_channels, avg_degree, fused_kernels
        )
        outputs = [self.layout] * (num_layers - 1) + [self.layout_out]
        self.blocks = nn.ModuleList(
            EquiformerBlock(
                self.layout,
                irreps_out,
                attention=self._attention(self.layout, self.layout),
                update=self.make_update(irreps_out, settings),
                drop_path=drop_path,
            )
            for irreps_out in outputs
        )
        self.norm = IrrepsLayerNorm(self.layout_out)

    def _attention(self, irreps_in: IrrepsLayout, irreps_out: IrrepsLayout) -> EquiformerAttention:
        s = self.message_settings
        return EquiformerAttention(
            irreps_in,
            irreps_out,
            IrrepsLayout(s.hidden),
            IrrepsLayout(s.head),
            s.num_heads,
            self.lmax_sh,
            self.radial_channels,
            nonlinear=s.nonlinear,
            rescale_degree=s.rescale_degree,
            alpha_drop=self.alpha_drop,
            fused=self.fused_kernels,
        )

    def make_vector_attention(self) -> VectorAttention:
        """Graph attention of this backbone's settings, for a head that predicts vectors.

        Returns
        -------
        VectorAttention
            Called with this backbone's output dictionary; returns [N, 3].
        """
        vector = IrrepsLayout.of([1], [1])
        return VectorAttention(self._attention(self.layout_out, vector), self.call_layer)

    def make_update(self, irreps_out: IrrepsLayout, settings: Any) -> nn.Module:
        """Update block of one layer; called once a layer with the subclass's settings."""
        raise NotImplementedError

    def validate_tasks(self, dataset_to_tasks) -> None:
        """Refuse tasks that need forces.

        Raises
        ------
        ConfigError
        """
        for tasks in dataset_to_tasks.values():
            if any(task.property in ("forces", "stress") for task in tasks):
                raise ConfigError(
                    "Equiformer backbones predict energies, not forces; drop the task or use "
                    "est_ocp.models.EquiformerV2EST"
                )

    def validate_atoms_data(self, atoms, task_name: str) -> None:
        """Check an ASE structure, its tags included.

        Raises
        ------
        DataError
            For elements or tags outside the model's range, or values that are not finite.
        """
        super().validate_atoms_data(atoms, task_name)
        if self.tag_embedding is not None:
            check_tags(torch.as_tensor(atoms.get_tags()))

    def forward(self, data) -> dict[str, Any]:
        """Embed a batch of systems (fairchem ``AtomicData``).

        Atoms without ``tags`` count as tag 0; without ``use_tags`` nobody reads them.

        Returns
        -------
        dict
            ``node_embedding`` [N, (lmax_out+1)**2, channels]; ``edge_index`` [2, E];
            ``edge_scalars`` [E, B]; ``edge_sh`` [E, (lmax_sh+1)**2]; ``envelope`` ([E] or None);
            ``atomic_numbers`` [N]; ``batch`` [N]; ``gates`` (:class:`est_ocp.nn.GateRecorder`) when
            a head asked for them.
        """
        atomic_numbers = data.atomic_numbers.long()
        tags = getattr(data, "tags", None)
        tags = torch.zeros_like(atomic_numbers) if tags is None else tags.long()
        if not atomic_numbers.is_cuda:
            self.check_elements(atomic_numbers)
            if self.tag_embedding is not None:
                check_tags(tags)
        graph = self.radius_graph(data)
        x, edge_scalars, edge_sh, envelope = self.call_layer(
            self._first_features, atomic_numbers, tags, graph.edge_index, graph.vec, graph.distance
        )
        edges = (graph.edge_index, edge_sh, edge_scalars)
        x, gates = self.run_blocks(x, *edges, data.batch, data.natoms.numel(), envelope)
        return gates | {
            "node_embedding": torch.cat(self.layout_out.split(self.norm(x)), dim=1),
            "edge_index": graph.edge_index,
            "edge_scalars": edge_scalars,
            "edge_sh": edge_sh,
            "envelope": envelope,
            "atomic_numbers": atomic_numbers,
            "batch": data.batch,
        }

    def _first_features(
        self,
        atomic_numbers: torch.Tensor,
        tags: torch.Tensor,
        edge_index: torch.Tensor,
        vec: torch.Tensor,
        distance: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """First node features, radial basis, harmonics and envelope, in the model's type."""
        edge_scalars = self.distance_basis(distance)
        envelope = None
        if self.envelope is not None:
            envelope = self.envelope(distance).to(edge_scalars.dtype)
        edge_sh = edge_harmonics(vec, distance, self.lmax_sh).to(edge_scalars.dtype)
        scalars = self.atom_embedding(atomic_numbers)
        if self.tag_embedding is not None:
            scalars = scalars + self.tag_embedding(tags)
        x = self.edge_degree_embedding(
            edge_index, edge_sh, edge_scalars, len(atomic_numbers), envelope
        )
        x = x + nn.functional.pad(scalars, (0, self.layout.dim - scalars.shape[1]))
        return x, edge_scalars, edge_sh, envelope


@registry.register_model("est_equiformer")
class EquiformerEST(EquiformerBackbone):
    """Equiformer's message block and the EST update block: the paper's IS2RE model (section 4.1).

    ``update`` takes the keys of :class:`est_ocp.models.settings.UpdateSettings`;
    ``hidden_channels`` is the width in which the block works, by default that of the scalars.
    """

    update_settings = UpdateSettings

    def make_update(self, irreps_out: IrrepsLayout, settings: UpdateSettings) -> nn.Module:
        """EST update block between the layer's irreps."""
        options = dict(vars(settings))
        rule = options.pop("rule").build(self.layout.degrees[-1])
        channels = options.pop("hidden_channels") or self.layout.width(0)
        return IrrepsESTUpdate(
            self.layout, irreps_out, channels, rule, fused_kernels=self.fused_kernels, **options
        )


@registry.register_model("equiformer")
class EquiformerBaseline(EquiformerBackbone):
    """Equiformer with its own feed-forward block: the baseline, same message block.

    ``update`` takes the keys of :class:`est_ocp.models.settings.FeedForwardSettings`.
    """

    update_settings = FeedForwardSettings

    def make_update(self, irreps_out: IrrepsLayout, settings: FeedForwardSettings) -> nn.Module:
        """Equiformer's feed-forward block."""
        return IrrepsFeedForward(self.layout, IrrepsLayout(settings.hidden), irreps_out)
