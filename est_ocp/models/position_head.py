"""Output head of the auxiliary task IS2RS: each atom's way to its relaxed position."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from fairchem.core.common.registry import registry
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.models.heads import AttentionHead
from est_ocp.models.layer_call import LayerCall
from est_ocp.nn.equiformer import EquiformerAttention


class VectorAttention(nn.Module):
    """Equiformer's attention on a backbone's output features, with one vector an atom.

    Parameters
    ----------
    attention : EquiformerAttention
        From the features' irreps to ``1x1e``.
    call_layer : LayerCall
        The backbone's.
    """

    def __init__(self, attention: EquiformerAttention, call_layer: LayerCall) -> None:
        super().__init__()
        self.attention = attention
        self.call_layer = call_layer
        self.orders = [2 * degree + 1 for degree in attention.irreps_in.degrees]

    def forward(self, emb: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Vectors [N, 3] from the backbone's output dictionary."""
        blocks = emb["node_embedding"].split(self.orders, dim=1)
        x = self.attention.irreps_in.join(blocks)
        edges = (emb["edge_index"], emb["edge_sh"], emb["edge_scalars"], emb["envelope"])
        return self.call_layer(self.attention, x, *edges)


@registry.register_model("est_position_delta_head")
class PositionDeltaHead(AttentionHead):
    """Displacements to the relaxed structure, ``{"position_delta": [N, 3]}``.

    As in Equiformer (arXiv 2206.11990, section 5.3): one more graph attention on the backbone's
    output, whose values are one vector an atom. In units of the task's normaliser; fixed atoms are
    predicted too, but neither trained nor judged.

    Parameters
    ----------
    backbone : Module
        With ``make_vector_attention()``: a module from the backbone's output (the dictionary) to
        vectors [N, 3], such as :class:`est_ocp.models.EquiformerEST` with vectors in its output.

    Raises
    ------
    ConfigError
        If the backbone has no such method.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        make = getattr(backbone, "make_vector_attention", None)
        if make is None:
            raise ConfigError(
                f"PositionDeltaHead cannot read vectors from {type(backbone).__name__}; use the "
                "backbone est_ocp.models.EquiformerEST, or train without it (tasks=is2re "
                "model/heads=energy)"
            )
        self.attention = make()

    def forward(self, data, emb) -> dict[str, torch.Tensor]:
        """Return the displacements of the batch's atoms."""
        return {"position_delta": self.attention(emb).to(data.pos.dtype)}
