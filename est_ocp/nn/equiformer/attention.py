"""Equiformer's graph attention."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn.equiformer.activation import scaled_smooth_leaky_relu
from est_ocp.nn.equiformer.layout import Blocks, IrrepsLayout
from est_ocp.nn.equiformer.linear import IrrepsLinear
from est_ocp.nn.equiformer.messages import LinearMessage, NonlinearMessage
from est_ocp.nn.gather import gather
from est_ocp.nn.scatter import edge_softmax, scatter_sum


class EquiformerAttention(nn.Module):
    """Attention over neighbours on irreps of unequal widths (arXiv 2206.11990, section 4.1).

    Features of source and target are mapped and added, and a message block makes of them, the
    harmonics and the radial basis one logit vector and one value a head. Logits: smooth leaky
    ReLU, dot product with a vector of each head, softmax over the edges of a target. The weighted
    values are summed and mapped to the output.

    Equal to the original but for what cannot reach the output: only those degrees of the values
    that the output has are computed. Softmax and sums run in at least float32.

    Parameters
    ----------
    irreps_in, irreps_out : IrrepsLayout
    irreps_hidden : IrrepsLayout
        Irreps of the messages ("pre_attn").
    irreps_head : IrrepsLayout
        Values of one head; its scalars are also the width of the logit vector.
    num_heads : int
    lmax_sh : int
        Degree of the edge harmonics.
    radial_channels : list of int
        Widths of the radial network, from the radial basis to the last hidden layer.
    nonlinear : bool
        :class:`NonlinearMessage` or :class:`LinearMessage`.
    rescale_degree : bool
        Multiply the sum over neighbours by their number.
    alpha_drop : float
        Dropout of attention weights.
    fused : bool
        As of :class:`est_ocp.nn.equiformer.DepthwiseTensorProduct`.

    Raises
    ------
    ConfigError
        If the heads have no scalars or lack a degree of the output.
    """

    def __init__(
        self,
        irreps_in: IrrepsLayout,
        irreps_out: IrrepsLayout,
        irreps_hidden: IrrepsLayout,
        irreps_head: IrrepsLayout,
        num_heads: int,
        lmax_sh: int,
        radial_channels: list[int],
        nonlinear: bool = True,
        rescale_degree: bool = False,
        alpha_drop: float = 0.0,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if not irreps_head.width(0) or num_heads < 1:
            raise ConfigError(
                f"attention needs heads with scalars for its logits, got {num_heads} heads of "
                f"{irreps_head}"
            )
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        self.num_heads = num_heads
        self.rescale_degree = rescale_degree
        merged = irreps_hidden.keep(irreps_in.degrees)
        self.source_linear = IrrepsLinear(irreps_in, merged)
        self.target_linear = IrrepsLinear(irreps_in, merged, bias=False)
        value = irreps_head.keep(irreps_out.degrees).times(num_heads)
        alpha_channels = irreps_head.width(0)
        self.message: NonlinearMessage | LinearMessage
        if nonlinear:
            self.message = NonlinearMessage(
                merged,
                irreps_hidden,
                value,
                num_heads * alpha_channels,
                lmax_sh,
                radial_channels,
                fused,
            )
        else:
            self.message = LinearMessage(
                merged,
                value,
                num_heads * alpha_channels,
                lmax_sh,
                radial_channels,
                num_heads,
                fused,
            )
        # Glorot's bound for a matrix of these two axes.
        bound = math.sqrt(6.0 / (num_heads + alpha_channels))
        self.alpha_dot = nn.Parameter(torch.empty(num_heads, alpha_channels))
        nn.init.uniform_(self.alpha_dot, -bound, bound)
        self.alpha_dropout = nn.Dropout(alpha_drop)
        self.projection = IrrepsLinear(value, irreps_out)

    def forward(
        self,
        x: torch.Tensor,
        edge_index: torch.Tensor,
        edge_sh: torch.Tensor,
        edge_scalars: torch.Tensor,
        envelope: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend.

        Parameters
        ----------
        x : Tensor [N, irreps_in.dim]
            Node features, flat.
        edge_index : Tensor [2, E]
            Row 0 sources, row 1 targets.
        edge_sh : Tensor [E, (lmax_sh+1)**2]
            Harmonics of ``pos[source] - pos[target]``, component normalised.
        edge_scalars : Tensor [E, radial_channels[0]]
            Radial basis.
        envelope : Tensor [E], optional
            Fades edges out, see :func:`est_ocp.nn.scatter.edge_softmax`; an edge then counts by
            its envelope where ``rescale_degree`` counts neighbours. The original has none.

        Returns
        -------
        Tensor [N, irreps_out.dim]
            Flat; nodes without edges get the bias alone.
        """
        num_nodes = x.shape[0]
        source, target = edge_index[0], edge_index[1]
        blocks = self.irreps_in.split(x)
        message = self._both_ends(
            self.source_linear(blocks), self.target_linear(blocks), source, target
        )
        alpha, values = self.message(message, edge_sh, edge_scalars)
        weights = self._weights(alpha, target, num_nodes, envelope)
        if self.rescale_degree:
            counts = weights.new_ones(len(target)) if envelope is None else envelope
            counts = scatter_sum(counts, target, num_nodes).index_select(0, target)
            weights = weights * counts.unsqueeze(1)
        summed = []
        for value in values:
            heads = value.unflatten(2, (self.num_heads, -1))
            heads = heads * weights.to(value.dtype)[:, None, :, None]
            summed.append(scatter_sum(heads.flatten(2), target, num_nodes))
        return self.irreps_out.join(self.projection(summed))

    @staticmethod
    def _both_ends(
        of_source: Blocks, of_target: Blocks, source: torch.Tensor, target: torch.Tensor
    ) -> Blocks:
        """Sum of the features [N, 2l+1, width] of both ends of edges, all degrees in one gather."""
        sizes = [block.shape[1:].numel() for block in of_source]
        a, b = (
            gather(torch.cat([block.flatten(1) for block in blocks], dim=1), end)
            for blocks, end in ((of_source, source), (of_target, target))
        )
        parts = (a + b).split(sizes, dim=1)
        return [
            part.unflatten(1, block.shape[1:]) for part, block in zip(parts, of_source, strict=True)
        ]

    def _weights(
        self,
        alpha: torch.Tensor,
        target: torch.Tensor,
        num_nodes: int,
        envelope: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention weights [E, num_heads] of logit vectors [E, num_heads * alpha_channels]."""
        with torch.autocast(alpha.device.type, enabled=False):
            alpha = alpha.to(self.alpha_dot.dtype).unflatten(1, (self.num_heads, -1))
            logits = (scaled_smooth_leaky_relu(alpha) * self.alpha_dot).sum(dim=-1)
            return self.alpha_dropout(edge_softmax(logits, target, num_nodes, envelope))

    def extra_repr(self) -> str:
        return f"{self.irreps_in} -> {self.irreps_out}, num_heads={self.num_heads}"
