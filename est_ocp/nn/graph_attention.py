"""EquiformerV2's graph attention: the message block."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn.activation import smooth_leaky_relu
from est_ocp.nn.autocast import in_autocast_dtype
from est_ocp.nn.coefficient_index import (
    check_degrees,
    degree_of_coefficient,
    frame_row_subset,
    truncation_rescale,
)
from est_ocp.nn.edge_rotation import (
    EdgeOrder,
    can_fuse_rotation,
    rotate_by_order,
    sum_from_frames,
)
from est_ocp.nn.radial_mlp import ElementRadialMLP
from est_ocp.nn.recompute import recomputed
from est_ocp.nn.s2_activation import SeparableS2Activation
from est_ocp.nn.scatter import edge_softmax
from est_ocp.nn.so2_convolution import SO2Convolution
from est_ocp.nn.so3_linear import SO3Linear
from est_ocp.sphere import ConstantBuffers, SphereRule


class EquiformerV2Attention(ConstantBuffers):
    """Attention over neighbours with nonlinear messages (arXiv 2306.12059, section 4, figure 1b).

    The features of both ends of an edge are rotated into its frame and concatenated, go through
    an SO(2) convolution with radial weights, a separable S2 activation and a second SO(2)
    convolution. Extra scalars of the first convolution give the logits: LayerNorm, smooth leaky
    ReLU, dot product with a vector of each head, softmax over the edges of a target. The weighted
    messages are rotated back, summed and mixed by a degree-wise linear map.

    Everything is strictly equivariant but the S2 activation, whose points leave a small
    dependence on the roll of the frame (see
    :class:`est_ocp.nn.s2_activation.SeparableS2Activation`). Under autocast the convolutions,
    rotations and activations run in its type; frames, softmax and sums stay in float32.

    Parameters
    ----------
    channels : int
        Channels of the input.
    hidden_channels : int
        Channels between the two convolutions.
    num_heads, alpha_channels, value_channels : int
        Heads; channels of a head's logit vector and of its message.
    lmax, mmax : int
    max_num_elements : int
        Atomic numbers must be below this.
    edge_channels : int
        Width of the radial network and the element embeddings.
    num_distance_basis : int
        Width of the expanded distance.
    out_channels : int
    rule : SphereRule
        Points of the S2 activation.
    alpha_drop : float
        Dropout of attention weights.
    lmin_out, lmax_out : int
        Degrees of the output, default all. Nothing is computed, and no weight exists, for others:
        a force head takes 1 and 1.
    out_bias : bool
        Add a bias to the scalars of the output.
    fused : bool
        Let the S2 activation use its fused kernel on GPUs. It has no second derivative: switch
        off when gradients of gradients are needed.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        num_heads: int,
        alpha_channels: int,
        value_channels: int,
        lmax: int,
        mmax: int,
        max_num_elements: int,
        edge_channels: int,
        num_distance_basis: int,
        out_channels: int,
        rule: SphereRule,
        alpha_drop: float = 0.0,
        lmin_out: int = 0,
        lmax_out: int | None = None,
        out_bias: bool = True,
        fused: bool = True,
    ) -> None:
        super().__init__()
        lmax_out = lmax if lmax_out is None else lmax_out
        check_degrees(lmax, mmax, lmin_out, lmax_out)
        if min(channels, hidden_channels, num_heads, alpha_channels, value_channels) < 1:
            raise ConfigError("the numbers of channels and heads of the attention must be positive")
        self.num_heads = num_heads
        self.alpha_channels = alpha_channels
        self.value_channels = value_channels
        self.lmin_out = lmin_out
        self.lmax_out = lmax_out

        self.extra_channels = [num_heads * alpha_channels, hidden_channels]
        self.first_convolution = SO2Convolution(
            2 * channels,
            hidden_channels,
            lmax,
            mmax,
            extra_channels=sum(self.extra_channels),
        )
        self.radial = ElementRadialMLP(
            num_distance_basis,
            edge_channels,
            self.first_convolution.num_radial_weights,
            max_num_elements,
        )
        self.activation = SeparableS2Activation(rule, lmax, mmax, lmax_out, fused)
        self.second_convolution = SO2Convolution(
            hidden_channels,
            num_heads * value_channels,
            lmax,
            mmax,
            lmin_out=lmin_out,
            lmax_out=lmax_out,
        )
        self.alpha_norm = nn.LayerNorm(alpha_channels)
        self.alpha_dot = nn.Parameter(torch.empty(num_heads, alpha_channels))
        bound = 1.0 / math.sqrt(alpha_channels)
        nn.init.uniform_(self.alpha_dot, -bound, bound)
        self.alpha_dropout = nn.Dropout(alpha_drop)
        self.projection = SO3Linear(
            num_heads * value_channels, out_channels, lmax_out, bias=out_bias, lmin=lmin_out
        )

        self.all_degrees_out = lmin_out == 0 and lmax_out == lmax
        rows = frame_row_subset(lmax, mmax, lmin_out, lmax_out)
        self.register_buffer("rows_out", rows, persistent=False)
        self.rescale = mmax < lmax_out
        factors = truncation_rescale(lmax, mmax)[degree_of_coefficient(lmax)]
        columns = slice(lmin_out**2, (lmax_out + 1) ** 2)
        self.register_constant("factors", factors[columns].unsqueeze(1))

    def forward(
        self,
        x: torch.Tensor,
        atomic_numbers: torch.Tensor,
        edge_scalars: torch.Tensor,
        edge_index: torch.Tensor,
        wigner: torch.Tensor,
        order: EdgeOrder | None = None,
        envelope: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend.

        Parameters
        ----------
        x : Tensor [N, (lmax+1)**2, channels]
            Node features.
        atomic_numbers : Tensor [N], integer
            Elements of the nodes.
        edge_scalars : Tensor [E, num_distance_basis]
            Expanded distances.
        edge_index : Tensor [2, E]
            Row 0 sources, row 1 targets.
        wigner : Tensor [E, R, (lmax+1)**2]
            From :class:`est_ocp.nn.edge_frame.EdgeFrame`.
        order : EdgeOrder, optional
            Edges sorted by their ends: allows fused kernels on GPUs.
        envelope : Tensor [E], optional
            Fades edges out, see :func:`est_ocp.nn.scatter.edge_softmax`. The original has none.

        Returns
        -------
        Tensor [N, (lmax_out+1)**2 - lmin_out**2, out_channels]
            The update; nodes without edges get the bias alone.
        """
        num_nodes = x.shape[0]
        x = in_autocast_dtype(x)
        wigner = wigner.to(x.dtype)

        hidden = self.radial.hidden(edge_scalars, atomic_numbers, edge_index)
        arguments = (x, wigner, hidden, edge_index, order)
        if can_fuse_rotation(x, wigner, order):
            # The kernel is fast enough to make the convolution's inputs once more in the backward
            # pass: they and the radial weights, the block's largest tensors, are not kept.
            messages, extra = recomputed(self._first_messages, *arguments)
        else:
            messages, extra = self._first_messages(*arguments)
        alpha, gating = extra.split(self.extra_channels, dim=1)
        messages = self.activation(gating, messages)
        messages, _ = self.second_convolution(messages)

        weights = self._attention_weights(alpha, edge_index[1], num_nodes, envelope)
        back = self._rows_back(wigner)
        aggregated = sum_from_frames(messages, back, edge_index, num_nodes, order, weights)
        if self.rescale:
            aggregated = aggregated * self.factors
        return self.projection(aggregated)

    def _first_messages(
        self,
        x: torch.Tensor,
        wigner: torch.Tensor,
        hidden: torch.Tensor,
        edge_index: torch.Tensor,
        order: EdgeOrder | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """First convolution, and its extra scalars, from the radial network's hidden features."""
        convolution = self.first_convolution
        inputs = rotate_by_order(
            x,
            wigner,
            self.radial.last(hidden),
            edge_index,
            convolution.lmax + 1,
            convolution.mmax + 1,
            order,
        )
        return convolution.multiply(inputs)

    def _attention_weights(
        self,
        alpha: torch.Tensor,
        target: torch.Tensor,
        num_nodes: int,
        envelope: torch.Tensor | None,
    ) -> torch.Tensor:
        """Weights [E, num_heads] from the logit vectors [E, num_heads * alpha_channels]."""
        with torch.autocast(alpha.device.type, enabled=False):
            alpha = alpha.to(self.alpha_dot.dtype)
            alpha = alpha.unflatten(1, (self.num_heads, self.alpha_channels))
            alpha = smooth_leaky_relu(self.alpha_norm(alpha))
            logits = (alpha * self.alpha_dot).sum(dim=-1)
            return self.alpha_dropout(edge_softmax(logits, target, num_nodes, envelope))

    def _rows_back(self, wigner: torch.Tensor) -> torch.Tensor:
        """Rotations [E, R_out, I_out] of the output's degrees."""
        if self.all_degrees_out:
            return wigner
        first, last = self.lmin_out**2, (self.lmax_out + 1) ** 2
        return wigner[:, :, first:last].index_select(1, self.rows_out)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, degrees out={self.lmin_out}..{self.lmax_out}"
