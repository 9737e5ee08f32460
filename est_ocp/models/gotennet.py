"""GotenNet-type backbones for fairchem: with the EST update as spherical expert, and as published.

Message passing is GotenNet's geometry-aware tensor attention (GATA; Aykent and Xia, ICLR 2025);
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
from est_ocp.models.graph import RadiusGraph
from est_ocp.models.layer_call import LayerCall
from est_ocp.models.layered import LayeredBackbone
from est_ocp.models.settings import (
    EQFFSettings,
    GotenNetUpdateSettings,
    GraphSettings,
    from_mapping,
)
from est_ocp.nn.edge_rotation import edge_order
from est_ocp.nn.gotennet import (
    EQFF,
    GATA,
    CosineCutoff,
    EdgeFeatures,
    ExpNormalBasis,
    GotenNetESTUpdate,
    GotenNetLayer,
    NodeFeatures,
    unit_harmonics,
)


class GotenNetBackbone(LayeredBackbone):
    """GotenNet's message passing with an update block to be chosen by a subclass.

    Node features are ``[N, (lmax+1)**2, channels]`` with GotenNet's scalars at i = 0, e3nn's
    convention. There is no normalisation between layers or at the end, as in the original.

    Parameters
    ----------
    lmax : int
        Largest degree, at least 1.
    num_layers, channels, num_heads : int
        Layers, width of nodes and edges, heads of the attention.
    num_distance_basis : int
        Exponential-normal radial functions.
    lmax_out : int
        Highest degree of the output: 0 for energies, 1 where a head predicts vectors.
    max_num_elements : int
        Atomic numbers must be below this.
    graph, update : mapping, optional
        See :mod:`est_ocp.models.settings`; the graph's defaults are 5 Angstrom, 500 neighbours
        and ``envelope: true``, with which the attention fades to zero at the cutoff. With false
        it does not, as in the original, and only the other messages fade.
    alpha_drop : float
        Dropout of attention weights.
    self_edges : bool
        Every atom is also a neighbour of itself, at distance zero and without direction, as in
        the authors' training code.
    direct_forces, regress_forces : bool
        As of the other backbones. With ``regress_forces: true, direct_forces: false`` forces are
        minus the gradient of the energy.
    activation_checkpointing : bool
        Recompute layers in the backward pass: less memory, about a third more time.
    compile_layers : {"never", "training", "always"}
        Compile first features and layers on GPUs, see
        :class:`est_ocp.models.layer_call.LayerCall`. Conservative models are never compiled.
    memory_budget : float
        Share of the activations that compiled layers keep for the backward pass.
    fused_kernels : bool
        Triton kernels on GPUs, in half precision or where TF32 is allowed, never in
        conservative models, and the search for neighbours by all pairs.
    otf_graph : bool
        Build graphs on the fly (True), or use the data's ``edge_index``.
    """

    update_settings: type

    #: How heads initialise their linear maps.
    weight_init = "uniform"
    capturable = True

    def __init__(
        self,
        lmax: int = 2,
        num_layers: int = 4,
        channels: int = 256,
        num_heads: int = 8,
        num_distance_basis: int = 64,
        lmax_out: int = 0,
        max_num_elements: int = 90,
        graph: Mapping[str, Any] | GraphSettings | None = None,
        update: Mapping[str, Any] | None = None,
        alpha_drop: float = 0.1,
        self_edges: bool = True,
        direct_forces: bool = True,
        regress_forces: bool = False,
        activation_checkpointing: bool = False,
        compile_layers: str = "never",
        memory_budget: float = 1.0,
        fused_kernels: bool = True,
        otf_graph: bool = True,
        **unknown: Any,
    ) -> None:
        # Conservative training differentiates twice; compiled layers cannot.
        twice = regress_forces and not direct_forces
        call_layer = LayerCall(compile_layers, memory_budget, allowed=not twice)
        super().__init__(call_layer, activation_checkpointing)
        self.refuse_unknown_keys(unknown)
        if num_layers < 1:
            raise ConfigError(f"model.backbone: num_layers must be positive, got {num_layers}")
        if not 0 <= lmax_out <= lmax:
            raise ConfigError(
                f"model.backbone: lmax_out must lie in 0..lmax={lmax}, got {lmax_out}"
            )
        self.lmax, self.lmax_out, self.channels = lmax, lmax_out, channels
        self.max_num_elements = max_num_elements
        self.self_edges = self_edges
        # The kernels have no second derivatives.
        self.fused_kernels = fused_kernels and not twice
        self.regress_config = GradRegressConfig(direct_forces=direct_forces, forces=regress_forces)
        if graph is None or isinstance(graph, Mapping):
            graph = {"cutoff": 5.0, "max_neighbors": 500, "envelope": True} | dict(graph or {})
        self.graph_settings = from_mapping(GraphSettings, graph, "model.backbone.graph")
        settings = from_mapping(self.update_settings, update, "model.backbone.update")
        self.radius_graph = RadiusGraph(self.graph_settings, otf_graph, dense=fused_kernels)

        cutoff = self.graph_settings.cutoff
        self.distance_basis = ExpNormalBasis(cutoff, num_distance_basis)
        self.fade = CosineCutoff(cutoff)
        self.node_features = NodeFeatures(channels, num_distance_basis, max_num_elements)
        self.edge_features = EdgeFeatures(channels, num_distance_basis)
        self.blocks = nn.ModuleList(
            GotenNetLayer(
                GATA(
                    channels,
                    lmax,
                    num_heads,
                    refine_edges=layer < num_layers - 1,
                    fade_attention=self.graph_settings.envelope,
                    alpha_drop=alpha_drop,
                ),
                self.make_update(settings),
            )
            for layer in range(num_layers)
        )

    @property
    def conservative(self) -> bool:
        """Whether forces are derivatives of the energy."""
        return self.regress_config.forces and not self.regress_config.direct_forces

    def make_update(self, settings: Any) -> nn.Module:
        """Update block of one layer; called once a layer with the subclass's settings."""
        raise NotImplementedError

    def make_attention(self, *_: Any, **__: Any) -> nn.Module:
        """Refuse the head of direct forces, which needs EquiformerV2's attention.

        Raises
        ------
        ConfigError
        """
        raise ConfigError(
            "ForceHead needs an EquiformerV2 backbone; with GotenNet set model.backbone."
            "direct_forces to false and use est_ocp.models.ConservativeHead"
        )

    def forward(self, data) -> dict[str, Any]:
        """Embed a batch of systems (fairchem ``AtomicData``).

        Returns
        -------
        dict
            ``node_embedding`` [N, (lmax_out+1)**2, channels]; ``edge_index`` [2, E], without the
            atoms' edges to themselves; ``atomic_numbers`` [N]; ``batch`` [N]; ``gates``
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
        graph = self.radius_graph(data)
        x, t, *edges = self.call_layer(
            self._first_features, atomic_numbers, graph.edge_index, graph.vec, graph.distance
        )
        order = None
        if self.fused_kernels and x.is_cuda:
            order = edge_order(edges[0], len(x))
        (x, _), gates = self.run_blocks((x, t), *edges, data.batch, data.natoms.numel(), order)
        return gates | {
            "node_embedding": x[:, : (self.lmax_out + 1) ** 2],
            "edge_index": graph.edge_index,
            "atomic_numbers": atomic_numbers,
            "batch": data.batch,
        }

    def _first_features(
        self,
        atomic_numbers: torch.Tensor,
        edge_index: torch.Tensor,
        vec: torch.Tensor,
        distance: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Node features, edge scalars, edges, unit harmonics and fade, in the model's type."""
        dtype = self.distance_basis.centres.dtype
        harmonics = unit_harmonics(vec, distance, self.lmax).to(dtype)
        edge_scalars = self.distance_basis(distance)
        fade = self.fade(distance).to(dtype)
        scalars = self.node_features(atomic_numbers, edge_index, edge_scalars, fade)
        if self.self_edges:
            nodes = torch.arange(len(atomic_numbers), device=edge_index.device)
            edge_index = torch.cat((edge_index, nodes.expand(2, -1)), dim=1)
            here = self.distance_basis(distance.new_zeros(1)).expand(len(nodes), -1)
            edge_scalars = torch.cat((edge_scalars, here))
            harmonics = torch.cat((harmonics, harmonics.new_zeros(len(nodes), harmonics.shape[1])))
            fade = torch.cat((fade, fade.new_ones(len(nodes))))
        t = self.edge_features(scalars, edge_index, edge_scalars)
        x = nn.functional.pad(scalars.unsqueeze(1), (0, 0, 0, (self.lmax + 1) ** 2 - 1))
        return x.to(dtype), t.to(dtype), edge_index, harmonics, fade


@registry.register_model("est_gotennet")
class GotenNetEST(GotenNetBackbone):
    """GATA and a mixture of EQFF and the EST update block: the paper's QM9 model of section D.3.

    ``update`` takes the keys of :class:`est_ocp.models.settings.GotenNetUpdateSettings`.
    """

    update_settings = GotenNetUpdateSettings

    def make_update(self, settings: GotenNetUpdateSettings) -> nn.Module:
        """Mixture of EQFF and the EST update block."""
        options = dict(vars(settings))
        rule = options.pop("rule").build(self.lmax)
        return GotenNetESTUpdate(
            self.channels,
            self.lmax,
            rule,
            # PyTorch's fused attention has no second derivative.
            fused_attention=not self.conservative,
            fused_kernels=self.fused_kernels,
            **options,
        )


@registry.register_model("gotennet")
class GotenNetBaseline(GotenNetBackbone):
    """GotenNet as published, GATA and EQFF: the baseline, same message block.

    ``update`` takes the keys of :class:`est_ocp.models.settings.EQFFSettings`.
    """

    update_settings = EQFFSettings

    def make_update(self, settings: EQFFSettings) -> nn.Module:
        """GotenNet's equivariant feed-forward."""
        return EQFF(self.channels, settings.hidden_channels)
