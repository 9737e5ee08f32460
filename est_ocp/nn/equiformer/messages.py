"""Messages of an edge: vectors for the attention logits, and values."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.nn.equiformer.depthwise_tensor_product import DepthwiseTensorProduct
from est_ocp.nn.equiformer.gate import IrrepsGate
from est_ocp.nn.equiformer.layout import Blocks, IrrepsLayout
from est_ocp.nn.equiformer.linear import IrrepsLinear
from est_ocp.nn.equiformer.radial_profile import RadialProfile


class NonlinearMessage(nn.Module):
    """Two tensor products with a gate between them (arXiv 2206.11990, figure 1b).

    The first has radial weights; its scalars also give the logit vectors. The second, after a
    linear map and the gate, has weights of its own that all edges share.

    Parameters
    ----------
    irreps_in : IrrepsLayout
        Sum of the mapped features of both ends.
    irreps_hidden : IrrepsLayout
        Irreps between the two products.
    irreps_value : IrrepsLayout
        Values of all heads.
    alpha_channels : int
        Logit channels of all heads.
    lmax_sh : int
        Degree of the edge harmonics.
    radial_channels : list of int
        Widths of the radial network, without its output.
    fused : bool
        As of :class:`DepthwiseTensorProduct`.
    """

    def __init__(
        self,
        irreps_in: IrrepsLayout,
        irreps_hidden: IrrepsLayout,
        irreps_value: IrrepsLayout,
        alpha_channels: int,
        lmax_sh: int,
        radial_channels: list[int],
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.product = DepthwiseTensorProduct(
            irreps_in, lmax_sh, irreps_hidden.degrees, fused=fused
        )
        self.radial = RadialProfile([*radial_channels, self.product.num_weights])
        self.gate = IrrepsGate(irreps_hidden)
        self.linear = IrrepsLinear(self.product.irreps_out, self.gate.irreps_in)
        alpha = IrrepsLayout.uniform(alpha_channels, 0)
        self.alpha_linear = IrrepsLinear(self.product.irreps_out, alpha)
        self.value_product = DepthwiseTensorProduct(
            irreps_hidden, lmax_sh, irreps_value.degrees, fused=fused
        )
        self.value_weight = nn.Parameter(torch.randn(self.value_product.num_weights))
        self.value_linear = IrrepsLinear(self.value_product.irreps_out, irreps_value)

    def forward(
        self, blocks: Blocks, edge_sh: torch.Tensor, edge_scalars: torch.Tensor
    ) -> tuple[torch.Tensor, Blocks]:
        """Logit vectors [E, alpha_channels] and values, blocks [E, 2l+1, width]."""
        message = self.product(blocks, edge_sh, self.radial(edge_scalars))
        alpha = self.alpha_linear(message)[0].squeeze(1)
        hidden = self.gate(self.linear(message))
        value = self.value_product(hidden, edge_sh)
        # Weights that all edges share multiply the next matrices, not the features.
        return alpha, self.value_linear(value, self.value_product.by_degree(self.value_weight))


class LinearMessage(nn.Module):
    """One tensor product with radial weights and a linear map, no activation.

    Parameters
    ----------
    irreps_in, irreps_value, alpha_channels, lmax_sh, radial_channels, fused
        As of :class:`NonlinearMessage`.
    num_heads : int
        Heads among whom the scalars of the linear map are dealt out, each its logit channels
        first.
    """

    def __init__(
        self,
        irreps_in: IrrepsLayout,
        irreps_value: IrrepsLayout,
        alpha_channels: int,
        lmax_sh: int,
        radial_channels: list[int],
        num_heads: int,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.alpha_channels = alpha_channels
        self.has_scalars = irreps_value.width(0) > 0
        degrees = sorted({0, *irreps_value.degrees})
        widths = [irreps_value.width(d) for d in degrees]
        widths[0] += alpha_channels
        self.product = DepthwiseTensorProduct(irreps_in, lmax_sh, degrees, fused=fused)
        self.radial = RadialProfile([*radial_channels, self.product.num_weights])
        self.linear = IrrepsLinear(self.product.irreps_out, IrrepsLayout.of(degrees, widths))

    def forward(
        self, blocks: Blocks, edge_sh: torch.Tensor, edge_scalars: torch.Tensor
    ) -> tuple[torch.Tensor, Blocks]:
        """Logit vectors [E, alpha_channels] and values, blocks [E, 2l+1, width]."""
        message = self.linear(self.product(blocks, edge_sh, self.radial(edge_scalars)))
        scalars = message[0].unflatten(2, (self.num_heads, -1))
        size = self.alpha_channels // self.num_heads
        alpha = scalars[..., :size].flatten(1)
        values = [scalars[..., size:].flatten(2)] if self.has_scalars else []
        return alpha, values + message[1:]
