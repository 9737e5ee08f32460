"""The EST network: EST message blocks and EST update blocks, for molecules and for catalysts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.uma.escn_md import GradRegressConfig
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.models.distance_basis import make_distance_basis
from est_ocp.models.graph import RadiusGraph
from est_ocp.models.layer_call import LayerCall
from est_ocp.models.layered import LayeredBackbone
from est_ocp.models.settings import (
    ESTMessageSettings,
    GraphSettings,
    UpdateSettings,
    from_mapping,
)
from est_ocp.nn import (
    EquivariantLayerNorm,
    ESTLayer,
    ESTMessageBlock,
    ESTUpdateBlock,
    HarmonicEdgeEmbedding,
    PolynomialEnvelope,
    init_weights,
)
from est_ocp.nn.equiformer import edge_harmonics

#: Average number of neighbours in QM9 at 5 A, Equiformer's normaliser for that set.
QM9_AVG_DEGREE = 15.57930850982666


class VectorMessages(nn.Module):
    """Vectors [N, 3] from one more EST message block on a backbone's output.

    Parameters
    ----------
    message : ESTMessageBlock
        With one channel of degree 1 as output.
    call_layer : LayerCall
        The backbone's.
    """

    def __init__(self, message: ESTMessageBlock, call_layer: LayerCall) -> None:
        super().__init__()
        self.message = message
        self.call_layer = call_layer
        self.num_harmonics = (message.lmax + 1) ** 2

    def forward(self, emb: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Vectors [N, 3] from the backbone's output dictionary."""
        edge_sh = emb["edge_sh"][:, : self.num_harmonics]
        edges = (emb["edge_index"], edge_sh, emb["edge_scalars"], emb["envelope"])
        return self.call_layer(self.message, emb["node_embedding"], *edges).squeeze(-1)


@registry.register_model("est")
class ESTNetwork(LayeredBackbone):
    """EST messages and EST updates in every layer: the paper's model of figure 3.

    The defaults are the QM9 model: 6 layers, L = 2, cutoff 5 Angstrom (paper, section 4.2); widths,
    points and experts are not published and chosen here. Node features are
    ``[N, (lmax+1)**2, channels]``, e3nn's convention, component normalised. Messages fade to zero
    at the cutoff, whatever ``graph.envelope`` says.

    Parameters
    ----------
    lmax : int
        Largest degree of the features and of the edges' harmonics.
    num_layers, channels : int
        Layers and width.
    lmax_out : int
        Highest degree after the last layer: 0 for energies, 1 or more where a head predicts
        vectors.
    max_num_elements : int
        Atomic numbers must be below this.
    graph, message, update : mapping, optional
        See :mod:`est_ocp.models.settings`; the graph's defaults are 5 Angstrom and 500 neighbours.
    distance_basis : {"gaussian", "bessel"}
        Radial basis: Gaussians with trained centres and widths, or spherical Bessel functions.
    num_distance_basis : int
        Size of the radial basis.
    edge_channels : int
        Width of the radial network of the first features.
    drop_path, proj_drop : float
        Dropout of whole residual branches, and of channels.
    avg_degree : float
        Average number of neighbours; sums over neighbours are divided by its root.
    direct_forces : bool
        True: a head predicts forces. False: forces are minus the gradient of the energy.
    regress_forces : bool
        False for properties without forces.
    activation_checkpointing : bool
        Recompute layers in the backward pass: less memory, about a third more time.
    compile_layers : {"never", "training", "always"}
        Compile first features, layers and the force head on GPUs, see
        :class:`est_ocp.models.layer_call.LayerCall`. Conservative models are never compiled.
    memory_budget : float
        Share of the activations that compiled layers keep for the backward pass.
    fused_kernels : bool
        Triton kernels on GPUs, in half precision or where TF32 is allowed, never in
        conservative models, and the search for neighbours by all pairs.
    otf_graph : bool
        Build graphs on the fly (True), or use the data's ``edge_index``.
    """

    #: How heads initialise their linear maps.
    weight_init = "uniform"
    capturable = True

    def __init__(
        self,
        lmax: int = 2,
        num_layers: int = 6,
        channels: int = 128,
        lmax_out: int = 0,
        max_num_elements: int = 90,
        graph: Mapping[str, Any] | GraphSettings | None = None,
        message: Mapping[str, Any] | ESTMessageSettings | None = None,
        update: Mapping[str, Any] | UpdateSettings | None = None,
        distance_basis: str = "gaussian",
        num_distance_basis: int = 128,
        edge_channels: int = 64,
        drop_path: float = 0.0,
        proj_drop: float = 0.0,
        avg_degree: float = QM9_AVG_DEGREE,
        direct_forces: bool = True,
        regress_forces: bool = False,
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
        if num_layers < 1 or channels < 1 or lmax < 1 or not 0 <= lmax_out <= lmax:
            raise ConfigError(
                "model.backbone: num_layers, channels and lmax must be positive and lmax_out must "
                f"lie in 0..lmax; got num_layers={num_layers}, channels={channels}, lmax={lmax}, "
                f"lmax_out={lmax_out}"
            )
        if avg_degree <= 0:
            raise ConfigError(f"model.backbone: avg_degree must be positive, got {avg_degree}")
        self.lmax, self.lmax_out, self.channels = lmax, lmax_out, channels
        self.max_num_elements = max_num_elements
        self.avg_degree = avg_degree
        # The kernels have no second derivatives.
        self.fused_kernels = fused_kernels and not twice
        self.regress_config = GradRegressConfig(direct_forces=direct_forces, forces=regress_forces)
        if graph is None or isinstance(graph, Mapping):
            graph = {"cutoff": 5.0, "max_neighbors": 500} | dict(graph or {})
        self.graph_settings = from_mapping(GraphSettings, graph, "model.backbone.graph")
        self.message_settings = from_mapping(ESTMessageSettings, message, "model.backbone.message")
        self.update_settings = from_mapping(UpdateSettings, update, "model.backbone.update")
        self.radius_graph = RadiusGraph(self.graph_settings, otf_graph, dense=fused_kernels)

        cutoff = self.graph_settings.cutoff
        self.num_distance_basis = num_distance_basis
        self.distance_basis = make_distance_basis(distance_basis, cutoff, num_distance_basis)
        self.envelope = PolynomialEnvelope(cutoff)
        self.atom_embedding = nn.Embedding(max_num_elements, channels)
        self.edge_embedding = HarmonicEdgeEmbedding(
            channels, lmax, max_num_elements, edge_channels, num_distance_basis, avg_degree
        )
        self.blocks = nn.ModuleList(
            ESTLayer(
                self._message(lmax, channels), self._update(), lmax, channels, drop_path, proj_drop
            )
            for _ in range(num_layers)
        )
        self.norm = EquivariantLayerNorm(lmax_out, channels)
        init_weights(self, self.weight_init)

    @property
    def conservative(self) -> bool:
        """Whether forces are derivatives of the energy."""
        return self.regress_config.forces and not self.regress_config.direct_forces

    def _message(self, lmax: int, out_channels: int, **degrees_out: int) -> ESTMessageBlock:
        options = dict(vars(self.message_settings))
        rule = options.pop("rule").build(lmax)
        radial_channels = [self.num_distance_basis, *options.pop("radial_channels")]
        return ESTMessageBlock(
            self.channels,
            lmax,
            rule,
            radial_channels,
            out_channels=out_channels,
            avg_degree=self.avg_degree,
            fused_kernels=self.fused_kernels,
            **options,
            **degrees_out,
        )

    def _update(self) -> ESTUpdateBlock:
        options = dict(vars(self.update_settings))
        rule = options.pop("rule").build(self.lmax)
        return ESTUpdateBlock(
            self.channels,
            self.lmax,
            rule,
            # PyTorch's fused attention has no second derivative.
            fused_attention=not self.conservative,
            fused_kernels=self.fused_kernels,
            **options,
        )

    def make_vector_attention(self) -> VectorMessages:
        """EST messages of this backbone's settings, for a head that predicts vectors.

        Returns
        -------
        VectorMessages
            Called with this backbone's output dictionary; returns [N, 3].

        Raises
        ------
        ConfigError
            If the output has no degree 1.
        """
        if self.lmax_out < 1:
            raise ConfigError(
                "a head of vectors needs features of degree 1; set model.backbone.lmax_out to 1 "
                f"or more (at most {self.lmax})"
            )
        return VectorMessages(
            self._message(self.lmax_out, 1, lmin_out=1, lmax_out=1), self.call_layer
        )

    def forward(self, data) -> dict[str, Any]:
        """Embed a batch of systems (fairchem ``AtomicData``).

        Returns
        -------
        dict
            ``node_embedding`` [N, (lmax_out+1)**2, channels]; ``edge_index`` [2, E];
            ``edge_scalars`` [E, B]; ``edge_sh`` [E, (lmax+1)**2]; ``envelope`` [E];
            ``atomic_numbers`` [N]; ``batch`` [N]; ``gates``
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
        x, edge_sh, edge_scalars, envelope = self.call_layer(
            self._first_features, atomic_numbers, graph.edge_index, graph.vec, graph.distance
        )
        edges = (graph.edge_index, edge_sh, edge_scalars, envelope)
        x, gates = self.run_blocks(x, *edges, data.batch, data.natoms.numel())
        return gates | {
            "node_embedding": self.norm(x[:, : (self.lmax_out + 1) ** 2]),
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
        edge_index: torch.Tensor,
        vec: torch.Tensor,
        distance: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Node features before the first layer, harmonics, radial basis and envelope of edges."""
        edge_scalars = self.distance_basis(distance)
        envelope = self.envelope(distance).to(edge_scalars.dtype)
        edge_sh = edge_harmonics(vec, distance, self.lmax).to(edge_scalars.dtype)
        x = nn.functional.pad(
            self.atom_embedding(atomic_numbers)[:, None], (0, 0, 0, (self.lmax + 1) ** 2 - 1)
        )
        edges = (edge_index, edge_sh, edge_scalars, envelope)
        return x + self.edge_embedding(atomic_numbers, *edges), edge_sh, edge_scalars, envelope
