"""Output heads for fairchem: energy, direct forces, conservative forces, expert balance."""

from __future__ import annotations

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from fairchem.core.models.uma.outputs import compute_forces
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn import init_weights, load_balance_loss

#: Average number of atoms in OC20's IS2RE 100k set, EquiformerV2's divisor of energies.
AVG_NUM_NODES = 77.81317


class NodeEnergy(nn.Module):
    """Sum of one energy a node, from the scalars of its features.

    EquiformerV2's energy head with a separable grid MLP reduces to this two-layer perceptron: the
    l = 0 output of its feed-forward block depends on the scalars alone.

    Parameters
    ----------
    channels : int
        Width of the features.
    avg_num_nodes : float
        Divides the sum over nodes (``reduce="sum"``).
    reduce : {"sum", "mean"}
        Sum over nodes / avg_num_nodes, or mean over the nodes of each system.
    """

    def __init__(self, channels: int, avg_num_nodes: float, reduce: str) -> None:
        super().__init__()
        if reduce not in ("sum", "mean"):
            raise ConfigError(f"heads.energy.reduce must be 'sum' or 'mean', not '{reduce}'")
        self.avg_num_nodes = avg_num_nodes
        self.reduce = reduce
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, 1))

    def forward(self, x: torch.Tensor, batch: torch.Tensor, natoms: torch.Tensor) -> torch.Tensor:
        """Energies [B] from features [N, I, C], graph numbers [N] and sizes [B]."""
        node_energy = self.mlp(x[:, 0]).squeeze(-1)
        total = node_energy.new_zeros(natoms.numel()).index_add(0, batch, node_energy)
        return total / natoms if self.reduce == "mean" else total / self.avg_num_nodes


@registry.register_model("est_energy_head")
class EnergyHead(nn.Module, HeadInterface):
    """Energy of each system, ``{"energy": [B]}``, in the normaliser's units.

    Parameters
    ----------
    backbone : EquiformerV2Backbone
    avg_num_nodes : float
        Average number of atoms a system in the training set.
    reduce : {"sum", "mean"}
    """

    #: Part of a CUDA graph, see :class:`est_ocp.models.interface.FairchemBackbone`.
    capturable = True

    def __init__(
        self, backbone: nn.Module, avg_num_nodes: float = AVG_NUM_NODES, reduce: str = "sum"
    ) -> None:
        super().__init__()
        self.node_energy = NodeEnergy(backbone.channels, avg_num_nodes, reduce)
        init_weights(self, backbone.weight_init)

    def forward(self, data, emb) -> dict[str, torch.Tensor]:
        """Return the energies of the batch."""
        x = emb["node_embedding"]
        with torch.autocast(x.device.type, enabled=False):
            return {"energy": self.node_energy(x, emb["batch"], data.natoms)}


class AttentionHead(nn.Module, HeadInterface):
    """Base of heads that are one more graph attention."""

    @property
    def use_amp(self) -> bool:
        """Follow the surrounding autocast: fairchem would switch it off for heads."""
        return torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu")


@registry.register_model("est_force_head")
class ForceHead(AttentionHead):
    """Direct forces ``{"forces": [N, 3]}``: one more message block of the backbone's kind.

    On EquiformerV2 that is its graph attention with vector output, where only degree 1 is computed
    and rotated back from the edges' frames, so every parameter counts. Backbones with
    ``make_vector_attention()``, such as :class:`est_ocp.models.ESTNetwork`, bring their own, which
    reads vectors from their output (``lmax_out`` of 1 or more).
    """

    #: Part of a CUDA graph, as the energy head.
    capturable = True

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        if not backbone.regress_config.direct_forces:
            raise ConfigError(
                "ForceHead predicts forces directly; set model.backbone.direct_forces to true or "
                "use est_ocp.models.ConservativeHead"
            )
        self.call_layer = backbone.call_layer
        make = getattr(backbone, "make_vector_attention", None)
        self.reads_output = make is not None
        if make is not None:
            self.attention = make()
        else:
            self.attention = backbone.make_attention(1, lmin_out=1, lmax_out=1, out_bias=False)
        init_weights(self, backbone.weight_init)

    def forward(self, data, emb) -> dict[str, torch.Tensor]:
        """Return the forces of the batch's atoms."""
        if self.reads_output:
            return {"forces": self.attention(emb).to(data.pos.dtype)}
        out = self.call_layer(
            self.attention,
            emb["node_embedding"],
            emb["atomic_numbers"],
            emb["edge_scalars"],
            emb["edge_index"],
            emb["wigner"],
            emb["order"],
            emb["envelope"],
        )
        return {"forces": out[:, :, 0].to(data.pos.dtype)}


@registry.register_model("est_conservative_head")
class ConservativeHead(nn.Module, HeadInterface):
    """Energy, and forces as its derivatives.

    Returns ``{"energy": {"energy": [B]}, "forces": {"forces": [N, 3]}}``; set
    ``model.pass_through_head_outputs`` to true so that fairchem finds both.
    """

    def __init__(
        self, backbone: nn.Module, avg_num_nodes: float = AVG_NUM_NODES, reduce: str = "sum"
    ) -> None:
        super().__init__()
        self.regress_config = backbone.regress_config
        if self.regress_config.direct_forces:
            raise ConfigError(
                "ConservativeHead differentiates the energy; set model.backbone.direct_forces to "
                "false or use est_ocp.models.ForceHead"
            )
        self.node_energy = NodeEnergy(backbone.channels, avg_num_nodes, reduce)
        init_weights(self, backbone.weight_init)

    def forward(self, data, emb) -> dict[str, dict[str, torch.Tensor]]:
        """Return the energies and forces of the batch."""
        x = emb["node_embedding"]
        grad = torch.is_grad_enabled()
        with (
            torch.set_grad_enabled(self.regress_config.forces or grad),
            torch.autocast(x.device.type, enabled=False),
        ):
            energy = self.node_energy(x, emb["batch"], data.natoms)
            out = {}
            if self.regress_config.forces:
                forces = compute_forces(energy, data.pos, training=self.training and grad)
                out["forces"] = {"forces": forces}
        out["energy"] = {"energy": energy if grad else energy.detach()}
        return out


@registry.register_model("est_balance_head")
class BalanceHead(nn.Module, HeadInterface):
    """Load-balance loss of the experts, ``{"expert_balance": [B]}``, as a task of its own.

    With a task named ``expert_balance`` (target 0, its coefficient the balance ratio of the
    paper's Table 8) it reaches the trainer's loss and its logs. The head has no weights.

    Parameters
    ----------
    backbone : EquiformerV2EST
    pass_through : bool
        The model's ``pass_through_head_outputs``: wrap the output as fairchem then expects it.
    """

    def __init__(self, backbone: nn.Module, pass_through: bool = False) -> None:
        super().__init__()
        backbone.record_gates = True
        self.pass_through = pass_through

    def forward(self, data, emb) -> dict[str, torch.Tensor]:
        """Mean over the layers of the balance loss of each system."""
        gates = emb["gates"].records
        if not gates:
            raise ConfigError(
                "BalanceHead found no expert gates; use it with the backbone "
                "est_ocp.models.EquiformerV2EST and at least two experts"
            )
        num_graphs = data.natoms.numel()
        batches = {False: emb["batch"], True: emb["batch"][emb["edge_index"][1]]}
        losses = [
            load_balance_loss(probabilities, gate.top_k, batches[gate.per_edge], num_graphs)
            for gate, probabilities in gates.values()
        ]
        out = {"expert_balance": torch.stack(losses).mean(0)}
        return {"expert_balance": out} if self.pass_through else out
