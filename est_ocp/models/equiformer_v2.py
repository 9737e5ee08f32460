"""EquiformerV2-type backbones for fairchem: with the EST update block, and with their own.

Message passing is EquiformerV2's eSCN graph attention (arXiv 2306.12059); what follows it in each
layer is a subclass's choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.uma.escn_md import GradRegressConfig
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.models.graph import RadiusGraph
from est_ocp.models.layer_call import LayerCall
from est_ocp.models.layered import LayeredBackbone
from est_ocp.models.settings import (
    GraphSettings,
    GridUpdateSettings,
    MessageSettings,
    UpdateSettings,
    from_mapping,
)
from est_ocp.nn import (
    EdgeDegreeEmbedding,
    EdgeFrame,
    EquiformerV2Attention,
    EquivariantLayerNorm,
    ESTUpdateBlock,
    GaussianBasis,
    GridFeedForward,
    PolynomialEnvelope,
    TransformerBlock,
    init_weights,
)
from est_ocp.nn.autocast import in_autocast_dtype
from est_ocp.nn.edge_rotation import EdgeOrder, align_rotations, edge_order

#: Average number of neighbours in OC20's IS2RE 100k set at 5 A, EquiformerV2's normaliser.
AVG_DEGREE = 23.395238876342773


class EquiformerV2Backbone(LayeredBackbone):
    """EquiformerV2's message passing with an update block to be chosen by a subclass.

    Node features are ``[N, (lmax+1)**2, channels]``, e3nn's convention, component normalised.

    Parameters
    ----------
    lmax, mmax : int
        Largest degree, and largest order kept in the edges' frames.
    num_layers, channels : int
        Layers and width.
    max_num_elements : int
        Atomic numbers must be below this.
    graph, message, update : mapping, optional
        See :mod:`est_ocp.models.settings`.
    num_distance_basis : int
        Gaussians between 0 and the cutoff.
    basis_width : float
        Width of a Gaussian in units of their spacing.
    alpha_drop, drop_path, proj_drop : float
        Dropout of attention weights, of whole residual branches, and of channels.
    avg_degree : float
        Divides the sum of the edge-degree embedding.
    weight_init : {"uniform", "normal"}
        EquiformerV2's initialisation of linear maps.
    direct_forces : bool
        True: a head predicts forces. False: forces are minus the gradient of the energy.
    regress_forces : bool
        False for energies alone.
    activation_checkpointing : bool
        Recompute layers in the backward pass: less memory, about a third more time.
    compile_layers : {"never", "training", "always"}
        Compile frames, layers and the force head on GPUs, see
        :class:`est_ocp.models.layer_call.LayerCall`. Conservative models are never compiled.
    memory_budget : float
        Share of the activations that compiled layers keep for the backward pass.
    fused_kernels : bool
        Use the Triton kernels where they apply (:mod:`est_ocp.nn.triton`), never in conservative
        models, and on GPUs the search for neighbours by all pairs.
    otf_graph : bool
        Build graphs on the fly (True), or use the data's ``edge_index``.
    """

    capturable = True
    update_settings: type

    def __init__(
        self,
        lmax: int = 4,
        mmax: int = 2,
        num_layers: int = 8,
        channels: int = 128,
        max_num_elements: int = 90,
        graph: Mapping[str, Any] | GraphSettings | None = None,
        message: Mapping[str, Any] | MessageSettings | None = None,
        update: Mapping[str, Any] | None = None,
        num_distance_basis: int = 600,
        basis_width: float = 2.0,
        alpha_drop: float = 0.1,
        drop_path: float = 0.1,
        proj_drop: float = 0.0,
        avg_degree: float = AVG_DEGREE,
        weight_init: str = "uniform",
        direct_forces: bool = True,
        regress_forces: bool = True,
        activation_checkpointing: bool = False,
        compile_layers: str = "never",
        memory_budget: float = 1.0,
        fused_kernels: bool = True,
        otf_graph: bool = True,
        **unknown: Any,
    ) -> None:
        # Conservative training differentiates twice; compiled layers and fused kernels cannot.
        twice = regress_forces and not direct_forces
        call_layer = LayerCall(compile_layers, memory_budget, allowed=not twice)
        super().__init__(call_layer, activation_checkpointing)
        self.refuse_unknown_keys(unknown)
        if not 0 <= mmax <= lmax:
            raise ConfigError(f"model.backbone: mmax must lie in 0..lmax={lmax}, got {mmax}")
        self.lmax, self.mmax, self.channels = lmax, mmax, channels
        self.max_num_elements = max_num_elements
        self.weight_init = weight_init
        self.regress_config = GradRegressConfig(direct_forces=direct_forces, forces=regress_forces)
        self.fused_kernels = fused_kernels and not twice
        self.graph_settings = from_mapping(GraphSettings, graph, "model.backbone.graph")
        self.message_settings = from_mapping(MessageSettings, message, "model.backbone.message")
        settings = from_mapping(self.update_settings, update, "model.backbone.update")
        self.radius_graph = RadiusGraph(self.graph_settings, otf_graph, dense=fused_kernels)

        self.num_distance_basis = num_distance_basis
        self.atom_embedding = nn.Embedding(max_num_elements, channels)
        self.distance_basis = GaussianBasis(
            self.graph_settings.cutoff, num_distance_basis, basis_width
        )
        self.envelope = None
        if self.graph_settings.envelope:
            self.envelope = PolynomialEnvelope(self.graph_settings.cutoff)
        self.edge_frame = EdgeFrame(lmax, mmax)
        self.edge_degree_embedding = EdgeDegreeEmbedding(
            channels=channels,
            lmax=lmax,
            mmax=mmax,
            max_num_elements=max_num_elements,
            edge_channels=self.message_settings.edge_channels,
            num_distance_basis=num_distance_basis,
            rescale_factor=avg_degree,
        )
        self.blocks = nn.ModuleList(
            TransformerBlock(
                attention=self.make_attention(channels, alpha_drop),
                update=self.make_update(settings),
                lmax=lmax,
                channels=channels,
                drop_path=drop_path,
                proj_drop=proj_drop,
            )
            for _ in range(num_layers)
        )
        self.norm = EquivariantLayerNorm(lmax, channels)
        init_weights(self, weight_init)

    def make_attention(
        self, out_channels: int, alpha_drop: float = 0.0, **degrees_out: Any
    ) -> EquiformerV2Attention:
        """Graph attention of this backbone's settings; the force head asks for one too."""
        s = self.message_settings
        return EquiformerV2Attention(
            channels=self.channels,
            hidden_channels=s.hidden_channels,
            num_heads=s.num_heads,
            alpha_channels=s.alpha_channels,
            value_channels=s.value_channels,
            lmax=self.lmax,
            mmax=self.mmax,
            max_num_elements=self.max_num_elements,
            edge_channels=s.edge_channels,
            num_distance_basis=self.num_distance_basis,
            out_channels=out_channels,
            rule=s.activation_rule.build(self.lmax),
            alpha_drop=alpha_drop,
            fused=self.fused_kernels,
            **degrees_out,
        )

    @property
    def conservative(self) -> bool:
        """Whether forces are derivatives of the energy."""
        return self.regress_config.forces and not self.regress_config.direct_forces

    def make_update(self, settings: Any) -> nn.Module:
        """Update block of one layer; called once a layer with the subclass's settings."""
        raise NotImplementedError

    def forward(self, data) -> dict[str, Any]:
        """Embed a batch of systems (fairchem ``AtomicData``).

        Returns
        -------
        dict
            ``node_embedding`` [N, (lmax+1)**2, C]; ``edge_index`` [2, E]; ``edge_scalars``
            [E, B]; ``wigner`` [E, R, (lmax+1)**2]; ``order`` (EdgeOrder or None);
            ``envelope`` ([E] or None); ``atomic_numbers`` [N]; ``batch`` [N]; ``gates``
            (:class:`est_ocp.nn.GateRecorder`) when a head asked for them.
        """
        with torch.set_grad_enabled(self.conservative or torch.is_grad_enabled()):
            if self.conservative:
                data.pos.requires_grad_(True)
            return self._embed(data)

    def _embed(self, data) -> dict[str, Any]:
        atomic_numbers = data.atomic_numbers.long()
        if not atomic_numbers.is_cuda:
            self.check_elements(atomic_numbers)
        num_graphs = data.natoms.numel()
        graph = self.radius_graph(data)
        order = None
        if self.fused_kernels and graph.vec.is_cuda:
            order = edge_order(graph.edge_index, len(atomic_numbers))
        x, edge_scalars, wigner, envelope = self.call_layer(
            self._first_features, atomic_numbers, graph.edge_index, graph.vec, graph.distance, order
        )
        arguments = (
            atomic_numbers, edge_scalars, graph.edge_index, wigner, data.batch, num_graphs, order,
            envelope,
        )  # fmt: skip
        x, gates = self.run_blocks(x, *arguments)
        return gates | {
            "node_embedding": self.norm(x),
            "edge_index": graph.edge_index,
            "edge_scalars": edge_scalars,
            "wigner": wigner,
            "order": order,
            "envelope": envelope,
            "atomic_numbers": atomic_numbers,
            "batch": data.batch,
        }

    def _first_features(
        self,
        atomic_numbers: torch.Tensor,
        edge_index: torch.Tensor,
        vec: torch.Tensor,
        distance: torch.Tensor,
        order: EdgeOrder | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Node features before the first layer, radial basis, Wigner matrices, envelope."""
        edge_scalars = self.distance_basis(distance)
        envelope = None
        if self.envelope is not None:
            envelope = self.envelope(distance).to(edge_scalars.dtype)
        wigner = self.edge_frame(vec)
        x = nn.functional.pad(
            self.atom_embedding(atomic_numbers)[:, None], (0, 0, 0, (self.lmax + 1) ** 2 - 1)
        )
        x = x + self.edge_degree_embedding(
            atomic_numbers, edge_scalars, edge_index, wigner, len(atomic_numbers), order, envelope
        )
        # All layers read both: cast once.
        wigner = align_rotations(in_autocast_dtype(wigner), order)
        return x, in_autocast_dtype(edge_scalars), wigner, envelope


@registry.register_model("est_eqv2")
class EquiformerV2EST(EquiformerV2Backbone):
    """EquiformerV2's message block and the EST update block: the paper's S2EF model (section 4.1).

    ``update`` takes the keys of :class:`est_ocp.models.settings.UpdateSettings`.
    """

    update_settings = UpdateSettings

    def make_update(self, settings: UpdateSettings) -> nn.Module:
        """EST update block."""
        options = dict(vars(settings))
        rule = options.pop("rule").build(self.lmax)
        # PyTorch's fused attention has no second derivative either.
        fused = not self.conservative
        return ESTUpdateBlock(
            self.channels,
            self.lmax,
            rule,
            fused_attention=fused,
            fused_kernels=self.fused_kernels,
            **options,
        )


@registry.register_model("eqv2")
class EquiformerV2Baseline(EquiformerV2Backbone):
    """EquiformerV2 with its own grid feed-forward block: the baseline, same message block.

    ``update`` takes the keys of :class:`est_ocp.models.settings.GridUpdateSettings`.
    """

    update_settings = GridUpdateSettings

    def make_update(self, settings: GridUpdateSettings) -> nn.Module:
        """EquiformerV2's feed-forward block."""
        rule = settings.rule.build(self.lmax)
        return GridFeedForward(
            self.channels, settings.hidden_channels, self.channels, self.lmax, rule
        )
