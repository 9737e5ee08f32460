"""Point-wise feed-forward experts on the sphere, all of them in two matrix products."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.nn.autocast import in_autocast_dtype
from est_ocp.nn.recompute import recomputed
from est_ocp.nn.triton.support import can_fuse, experts_fit


class _GatedSiLU(torch.autograd.Function):
    """``silu(hidden) * weight`` that keeps only its inputs for the backward pass.

    Written as two operations it would store the SiLU's result as well: a third copy of the
    largest tensor of the network. Second derivatives work.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(hidden) * weight

    @staticmethod
    def setup_context(ctx, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, weight = ctx.saved_tensors
        grad_weight = (grad * nn.functional.silu(hidden)).sum(dim=(1, 3), keepdim=True)
        return _silu_backward(grad * weight, hidden), grad_weight


def _silu_backward(grad: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """``grad`` times the derivative of SiLU; the fused kernel has no derivative of its own."""
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(grad, hidden)
    sigmoid = torch.sigmoid(hidden)
    return grad * sigmoid * (1.0 + hidden * (1.0 - sigmoid))


class SphericalExperts(nn.Module):
    """Gate-weighted sum of point-wise feed-forward networks (paper, section 3.2.3).

    ``y[n, s] = sum_e g[n, e] (W2_e silu(W1_e f[n, s] + b1_e) + b2_e)``. The gate multiplies the
    hidden activations, so the sum over experts is part of the second matrix product and only one
    tensor of all experts' hidden activations exists. A point never sees another one, so the
    result is equivariant up to what the rule cannot resolve.

    The fused kernel never writes the hidden activations in the forward pass. It applies in half
    precision, or in float32 where TF32 is allowed, on GPUs, and has no second derivatives. Under
    ``torch.compile`` it is left out where gradients are wanted: what the compiler makes of the
    plain form is faster there, though it keeps more.

    The weights start uniform in ``+-1/sqrt(fan-in of one expert)``, the second times `gain`;
    biases start at zero.

    Parameters
    ----------
    channels : int
        Width C of the features.
    hidden_channels : int
        Hidden width H of one expert.
    num_experts : int
        Number E of experts.
    gain : float
        Factor on the second weight at the start, see :class:`MixtureOfHybridExperts`.
    bias : bool
        Bias of the second map. It only moves the mean over the sphere, the scalar output: leave
        it out where that is not used.
    fused : bool
        Use the fused kernel where it applies.
    recompute : bool
        Elsewhere, compute the hidden activations again in the backward pass: without it, two
        tensors of that size are kept.

    Attributes
    ----------
    weight_in : Parameter [E, H, C]
    bias_in : Parameter [E, H]
    weight_out : Parameter [C, E, H]
    bias_out : Parameter [E, C] or None
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        num_experts: int,
        *,
        gain: float = 1.0,
        bias: bool = True,
        fused: bool = True,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.fused = fused
        self.recompute = recompute
        self.channels = channels
        self.hidden_channels = hidden_channels
        self.num_experts = num_experts
        self.gain = gain
        self.weight_in = nn.Parameter(torch.empty(num_experts, hidden_channels, channels))
        self.bias_in = nn.Parameter(torch.empty(num_experts, hidden_channels))
        self.weight_out = nn.Parameter(torch.empty(channels, num_experts, hidden_channels))
        if bias:
            self.bias_out = nn.Parameter(torch.empty(num_experts, channels))
        else:
            self.register_parameter("bias_out", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights, set the biases to zero."""
        bound_in = 1.0 / math.sqrt(self.channels)
        bound_out = self.gain / math.sqrt(self.hidden_channels)
        nn.init.uniform_(self.weight_in, -bound_in, bound_in)
        nn.init.uniform_(self.weight_out, -bound_out, bound_out)
        nn.init.zeros_(self.bias_in)
        if self.bias_out is not None:
            nn.init.zeros_(self.bias_out)

    def forward(self, f: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Apply the experts.

        Parameters
        ----------
        f : Tensor [N, S, C]
            Normalised feature on the sphere.
        gate : Tensor [N, E]
            Weights of the experts.

        Returns
        -------
        Tensor [N, S, C]
        """
        f = in_autocast_dtype(f)
        if self._use_kernel(f):
            from est_ocp.nn.triton.spherical_experts import spherical_experts

            out = spherical_experts(
                f, gate, self.weight_in.flatten(0, 1), self.bias_in.flatten(),
                self.weight_out.flatten(1),
            )  # fmt: skip
        elif self.recompute:
            out = recomputed(self._apply_plain, f, gate)
        else:
            out = self._apply_plain(f, gate)
        if self.bias_out is None:
            return out
        return out + (gate.to(self.bias_out.dtype) @ self.bias_out).unsqueeze(1).to(out.dtype)

    def _use_kernel(self, f: torch.Tensor) -> bool:
        if torch.compiler.is_compiling() and torch.is_grad_enabled():
            return False
        return self.fused and can_fuse(f) and experts_fit(self.channels)

    def _apply_plain(self, f: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """All experts without their output bias."""
        hidden = nn.functional.linear(f, self.weight_in.flatten(0, 1), self.bias_in.flatten())
        hidden = hidden.unflatten(-1, (self.num_experts, self.hidden_channels))
        weight = gate.to(hidden.dtype)[:, None, :, None]
        hidden = _GatedSiLU.apply(hidden, weight).flatten(-2)
        return nn.functional.linear(hidden, self.weight_out.flatten(1))

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, hidden_channels={self.hidden_channels}, "
            f"num_experts={self.num_experts}"
        )
