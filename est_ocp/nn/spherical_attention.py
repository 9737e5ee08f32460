"""Self- and cross-attention between the sampling points of the sphere."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn.sphere_norm import spatial_norm
from est_ocp.sphere import ConstantBuffers, SphereRule, sphere_attention_bias


def tf32_products(q: torch.Tensor) -> bool:
    """Whether float32 matrix products run as TF32 for a tensor.

    PyTorch's fused attention does not: in float32 it keeps to full precision, at the cost of time.
    Where TF32 is allowed, two products around a softmax are then the faster attention.
    """
    return q.is_cuda and q.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32


class SphericalAttention(ConstantBuffers):
    r"""Attention of every point of the sphere to every other point, node by node.

    The continuous operation is an integral over the sphere,

    .. math::
        \mathrm{out}(p) = \frac{\int \exp(a(p, t))\, v(t)\, dt}{\int \exp(a(p, t))\, dt},\qquad
        a(p, t) = \frac{q(p) \cdot k(t) + p \cdot t}{\sqrt d},

    with ``q, k, v`` point-wise linear maps of the layer-normalised feature (paper, eq. 9) and
    ``p . t`` the relative orientation embedding (eq. 13). Appending ``p`` to ``q`` and ``t`` to
    ``k``, as the paper writes it, gives the same logits; here the term is a constant [S, S] bias
    shared by all nodes and heads, which keeps the head dimension a power of two and the fast
    kernels usable. On points with unequal weights the integral needs ``log w_t`` in the logits,
    which the same bias holds; it vanishes for equal weights.

    Parameters
    ----------
    channels : int
        Width C of the features.
    rule : SphereRule
        The S sampling points and their weights.
    num_heads : int
        Number of heads; must divide `channels`.
    relative_orientation : bool
        Add the relative orientation embedding.
    quadrature : bool
        Add the logarithm of the weights. Off, every point counts the same, as in the paper.
    norm : {"sphere", "point", "none"}
        Normalisation before q, k, v, see :func:`est_ocp.nn.sphere_norm.spatial_norm`.
    fused : bool
        Use PyTorch's fused kernels, or batched products where those run as TF32. The kernels have
        no second derivative: switch off when gradients of gradients are needed (training on forces
        that are derivatives of an energy).
    bias : bool
        Bias of the output map. The q, k, v maps need none: the norm before them has one.

    Raises
    ------
    ConfigError
        If `num_heads` does not divide `channels`.
    """

    def __init__(
        self,
        channels: int,
        rule: SphereRule,
        num_heads: int = 1,
        relative_orientation: bool = True,
        quadrature: bool = True,
        *,
        norm: str = "sphere",
        fused: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ConfigError(
                f"num_heads = {num_heads} does not divide the {channels} channels of the "
                "spherical attention; choose a divisor"
            )
        self.channels = channels
        self.num_heads = num_heads
        self.head_channels = channels // num_heads
        self.relative_orientation = relative_orientation
        self.quadrature = quadrature
        self.fused = fused
        self.scale = 1.0 / math.sqrt(self.head_channels)
        self.norm = spatial_norm(norm, channels, rule)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels, bias=bias)
        self.register_constant(
            "point_bias",
            sphere_attention_bias(rule, self.scale, relative_orientation, quadrature),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights uniformly in ``+-1/sqrt(channels)``; the output bias starts at zero."""
        bound = 1.0 / math.sqrt(self.channels)
        nn.init.uniform_(self.qkv.weight, -bound, bound)
        nn.init.uniform_(self.out.weight, -bound, bound)
        if self.out.bias is not None:
            nn.init.zeros_(self.out.bias)
        self.norm.reset_parameters()

    def forward(self, f: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Attend over the sphere; the caller adds the residual.

        Parameters
        ----------
        f : Tensor [N, S, C]
            Feature that the queries come from.
        context : Tensor [N, S, C], optional
            Feature that keys and values come from; `f` itself if not given.

        Returns
        -------
        Tensor [N, S, C]
        """
        if context is None:
            q, k, v = self.qkv(self.norm(f)).chunk(3, dim=-1)
        else:
            q_weight, kv_weight = self.qkv.weight.split((self.channels, 2 * self.channels))
            q = nn.functional.linear(self.norm(f), q_weight)
            k, v = nn.functional.linear(self.norm(context), kv_weight).chunk(2, dim=-1)
        q, k, v = (self._split_heads(part) for part in (q, k, v))
        attend = self._attend_fused if self.fused else self._attend_explicitly
        if self.fused and tf32_products(q):
            attend = self._attend_by_products
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))

    def _split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """[N, S, C] to [N, heads, S, C / heads]."""
        return x.unflatten(-1, (self.num_heads, self.head_channels)).transpose(1, 2)

    def _attend_fused(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        # The kernels accumulate the softmax in float32 but want the mask in the queries' type.
        bias = self.point_bias.to(q.dtype)
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)

    def _attend_by_products(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        logits = torch.add(self.point_bias, torch.matmul(q, k.mT), alpha=self.scale)
        return torch.matmul(torch.softmax(logits, dim=-1), v)

    def _attend_explicitly(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        logits = torch.matmul(q * self.scale, k.transpose(-1, -2))
        precise = torch.promote_types(logits.dtype, torch.float32)
        weights = torch.softmax(logits.to(precise) + self.point_bias.to(precise), dim=-1)
        return torch.matmul(weights.to(v.dtype), v)

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, num_heads={self.num_heads}, "
            f"relative_orientation={self.relative_orientation}, quadrature={self.quadrature}, "
            f"fused={self.fused}"
        )
