"""GotenNet's message block: attention over neighbours, and refinement of the edges."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn.autocast import in_autocast_dtype
from est_ocp.nn.edge_rotation import EdgeOrder
from est_ocp.nn.gather import gather
from est_ocp.nn.gotennet.linear import FusedLinear, glorot_linear
from est_ocp.nn.scatter import edge_softmax, scatter_sum
from est_ocp.nn.so3_linear import SO3Linear
from est_ocp.nn.triton.support import can_fuse


class GATA(nn.Module):
    """Geometry-aware tensor attention (GotenNet, section 3.2), strictly equivariant.

    With scalars h, steerable features X, edge scalars t and unit harmonics r, every target i
    receives from its sources j

    ``o_ij = (W_f t_ij) gamma_s(h_j) u(d_ij) + a_ij gamma_v(h_j) / sqrt(C)``,

    where ``a_ij`` is the softmax over j of ``sum_c q_i k_j silu(W_a t_ij)`` within a head. The
    ``1 + 2L`` blocks of C channels of ``o_ij`` are the message to the scalars, and for every
    degree the factors of ``r_ij`` and of ``X_j``. A head owns a run of consecutive channels of
    *all* blocks together, as in the original.

    The edges are then refined with the new X (hierarchical tensor refinement): ``t_ij +=
    silu(W_t t_ij) sum_l <Q_i, K_j>`` with the parts of Q and K along ``r_ij`` taken out. As r has
    length one in every degree, that inner product is ``<Q, K> - <Q, r> <K, r>``.

    Under autocast linear maps and messages run in its type; softmax, sums over neighbours and the
    features x and t themselves stay in float32.

    Parameters
    ----------
    channels : int
        Width C of nodes and edges.
    lmax : int
        Degree L, at least 1.
    num_heads : int
    refine_edges : bool
        Update t; the last layer of a network has no use for it.
    fade_attention : bool
        Let the attention fade to zero at the cutoff too, with u as the envelope of
        :func:`est_ocp.nn.scatter.edge_softmax`. The original fades the first term of ``o_ij``
        alone and jumps where a neighbour enters.
    alpha_drop : float
        Dropout of attention weights.

    Raises
    ------
    ConfigError
        If the widths do not fit.
    """

    def __init__(
        self,
        channels: int,
        lmax: int,
        num_heads: int,
        refine_edges: bool = True,
        fade_attention: bool = False,
        alpha_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if channels < 1 or num_heads < 1 or channels % num_heads:
            raise ConfigError(
                f"GotenNet's {channels} channels do not divide into {num_heads} heads; choose a "
                "multiple"
            )
        if lmax < 1:
            raise ConfigError(f"GotenNet needs features of degree 1 or more, got lmax = {lmax}")
        self.channels = channels
        self.lmax = lmax
        self.num_heads = num_heads
        self.refine_edges = refine_edges
        self.fade_attention = fade_attention
        self.orders = [2 * degree + 1 for degree in range(1, lmax + 1)]
        blocks = 1 + 2 * lmax

        self.node_linear = FusedLinear(channels, [channels] * 4)
        self.spatial_linear = glorot_linear(channels, blocks * channels)
        self.value_linear = glorot_linear(channels, blocks * channels)
        edge_widths = [channels, blocks * channels] + [channels] * refine_edges
        self.edge_linear = FusedLinear(channels, edge_widths)
        self.alpha_dropout = nn.Dropout(alpha_drop)
        if refine_edges:
            self.refine_query = glorot_linear(channels, channels, bias=False)
            self.refine_key = SO3Linear(channels, channels, lmax, lmin=1)
            for weight in self.refine_key.weight:
                nn.init.xavier_uniform_(weight)

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        edge_index: torch.Tensor,
        harmonics: torch.Tensor,
        fade: torch.Tensor,
        order: EdgeOrder | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend and refine, residuals included.

        Parameters
        ----------
        x : Tensor [N, (lmax+1)**2, C]
            Scalars at i = 0, then steerable features.
        t : Tensor [E, C]
            Edge scalars.
        edge_index : Tensor [2, E]
            Row 0 sources, row 1 targets.
        harmonics : Tensor [E, (lmax+1)**2 - 1]
            From :func:`est_ocp.nn.gotennet.unit_harmonics`; zeros for an edge without direction.
        fade : Tensor [E]
            Cosine cutoff u.
        order : EdgeOrder, optional
            With it the fused kernels (``est_ocp.nn.triton.tensor_messages`` and
            ``tensor_products``) are used where they apply: on GPUs, in half precision or where
            TF32 is allowed, up to degree 2, and
            where neither directions nor cutoff need gradients.

        Returns
        -------
        x : Tensor [N, (lmax+1)**2, C]
        t : Tensor [E, C]
        """
        source, target = edge_index.unbind(0)
        low = in_autocast_dtype(x)
        harmonics = harmonics.to(low.dtype)
        attention, spatial, *refine = self.edge_linear(in_autocast_dtype(t))

        query, key, hidden_spatial, hidden_value = self.node_linear(low[:, 0])
        weights = self._weights(query, key, attention, source, target, fade, len(x))
        value = self.value_linear(nn.functional.silu(hidden_value))
        gate = self.spatial_linear(nn.functional.silu(hidden_spatial))
        edges = (harmonics, fade, edge_index)
        fused = self._fuses(low, harmonics, fade, order)
        if fused:
            # Imported here, as Triton is there on GPUs alone.
            from est_ocp.nn.triton.tensor_messages import tensor_messages
            from est_ocp.nn.triton.tensor_products import tensor_products

            x = x + tensor_messages(spatial, gate, value, weights, low, *edges, *order).to(x.dtype)
        else:
            messages = self._messages(spatial, gate, value, weights, low, *edges)
            x = x + scatter_sum(messages, target, len(x)).to(x.dtype)
        if self.refine_edges:
            steerable = in_autocast_dtype(x)[:, 1:]
            query, key = self.refine_query(steerable), self.refine_key(steerable)
            if fused:
                change = tensor_products(query, key, harmonics, edge_index, *order)
            else:
                change = self._change_of_length(query, key, source, target, harmonics)
            t = t + nn.functional.silu(refine[0]) * change
        return x, t

    def _fuses(
        self,
        x: torch.Tensor,
        harmonics: torch.Tensor,
        fade: torch.Tensor,
        order: EdgeOrder | None,
    ) -> bool:
        if order is None or self.lmax > 2 or harmonics.requires_grad or fade.requires_grad:
            return False
        return can_fuse(x)

    def _weights(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        attention: torch.Tensor,
        source: torch.Tensor,
        target: torch.Tensor,
        fade: torch.Tensor,
        num_nodes: int,
    ) -> torch.Tensor:
        """Attention weights over sqrt(C) [E, num_heads], in at least float32."""
        with torch.autocast(query.device.type, enabled=False):
            precise = torch.promote_types(query.dtype, torch.float32)
            query, key = query.to(precise), key.to(precise)
            products = query.index_select(0, target) * key.index_select(0, source)
            products = products * nn.functional.silu(attention.to(precise))
            logits = products.unflatten(-1, (self.num_heads, -1)).sum(dim=-1)
            envelope = fade.to(precise) if self.fade_attention else None
            weights = edge_softmax(logits, target, num_nodes, envelope)
            return self.alpha_dropout(weights / math.sqrt(self.channels))

    def _messages(
        self,
        spatial: torch.Tensor,
        gate: torch.Tensor,
        value: torch.Tensor,
        weights: torch.Tensor,
        x: torch.Tensor,
        harmonics: torch.Tensor,
        fade: torch.Tensor,
        edge_index: torch.Tensor,
    ) -> torch.Tensor:
        """Messages [E, I, C], see :func:`est_ocp.nn.triton.tensor_messages.tensor_messages`."""
        source = edge_index[0]
        heads = gather(value, source).unflatten(-1, (self.num_heads, -1))
        heads = (heads * weights.to(heads.dtype).unsqueeze(-1)).flatten(-2)
        factors = spatial * gather(gate, source) * fade.to(gate.dtype).unsqueeze(-1) + heads
        factors = factors.unflatten(-1, (1 + 2 * self.lmax, self.channels))
        scalar, *factors = factors.split(1, dim=1)
        along, across = factors[: self.lmax], factors[self.lmax :]
        steerable = gather(x[:, 1:], source).split(self.orders, 1)
        directions = harmonics.unsqueeze(-1).split(self.orders, 1)
        blocks = zip(along, directions, across, steerable, strict=True)
        return torch.cat([scalar] + [d * r + f * feature for d, r, f, feature in blocks], dim=1)

    def _change_of_length(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        source: torch.Tensor,
        target: torch.Tensor,
        harmonics: torch.Tensor,
    ) -> torch.Tensor:
        """Inner products [E, C] of queries and keys without their parts along the edge."""
        query, key = gather(query, target), gather(key, source)
        total = (query * key).sum(dim=1)
        along_query, along_key = (
            [
                block.sum(dim=1)
                for block in (feature * harmonics.unsqueeze(-1)).split(self.orders, dim=1)
            ]
            for feature in (query, key)
        )
        return total - sum(q * k for q, k in zip(along_query, along_key, strict=True))

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, lmax={self.lmax}, num_heads={self.num_heads}, "
            f"fade_attention={self.fade_attention}"
        )
