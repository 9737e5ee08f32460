"""Degree-wise feed-forward experts, all of them in two matrix products per degree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from est_ocp.nn.autocast import in_autocast_dtype
from est_ocp.nn.gate_activation import GateActivation
from est_ocp.nn.triton.support import can_fuse


class SteerableExperts(nn.Module):
    """Gate-weighted sum of strictly equivariant feed-forward networks (paper, section 3.2.3).

    One expert is a degree-wise linear map ``C -> H``, the Gate activation (SiLU on scalars,
    sigmoids of ``W_g x_{l=0} + b_g`` on higher degrees) and a degree-wise linear map ``H -> C``.
    As in :class:`SphericalExperts` the experts' probabilities multiply the hidden activations,
    here inside the small tensor of gates, and the second map sums over the experts. Between the
    maps each degree is a tensor of its own: joining and splitting the hidden activations would
    copy the largest tensors of the module.

    The fused kernel reads and writes the hidden activations once. It applies in half precision, or
    in float32 where TF32 is allowed, on GPUs, and has no second derivatives.

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
    lmax : int
        Largest degree.
    gain : float
        Factor on the second weight at the start, see :class:`MixtureOfHybridExperts`.
    fused : bool
        Use the fused kernel of the activation where it applies.

    Attributes
    ----------
    weight_in : Parameter [lmax + 1, E, H, C]
    bias_in : Parameter [E, H]
    weight_gate : Parameter [lmax, E, H, C] or None
    bias_gate : Parameter [lmax, E, H] or None
    weight_out : Parameter [lmax + 1, C, E, H]
    bias_out : Parameter [E, C]
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        num_experts: int,
        lmax: int,
        *,
        gain: float = 1.0,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.fused = fused
        self.channels = channels
        self.hidden_channels = hidden_channels
        self.num_experts = num_experts
        self.lmax = lmax
        self.gain = gain
        self.weight_in = nn.Parameter(torch.empty(lmax + 1, num_experts, hidden_channels, channels))
        self.bias_in = nn.Parameter(torch.empty(num_experts, hidden_channels))
        if lmax > 0:
            self.weight_gate = nn.Parameter(
                torch.empty(lmax, num_experts, hidden_channels, channels)
            )
            self.bias_gate = nn.Parameter(torch.empty(lmax, num_experts, hidden_channels))
        else:
            self.register_parameter("weight_gate", None)
            self.register_parameter("bias_gate", None)
        self.weight_out = nn.Parameter(
            torch.empty(lmax + 1, channels, num_experts, hidden_channels)
        )
        self.bias_out = nn.Parameter(torch.empty(num_experts, channels))
        self.activation = GateActivation(lmax)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights, set the biases to zero."""
        bound_in = 1.0 / math.sqrt(self.channels)
        bound_out = self.gain / math.sqrt(self.hidden_channels)
        nn.init.uniform_(self.weight_in, -bound_in, bound_in)
        nn.init.uniform_(self.weight_out, -bound_out, bound_out)
        nn.init.zeros_(self.bias_in)
        nn.init.zeros_(self.bias_out)
        if self.weight_gate is not None:
            nn.init.uniform_(self.weight_gate, -bound_in, bound_in)
            nn.init.zeros_(self.bias_gate)

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Apply the experts.

        Parameters
        ----------
        x : Tensor [N, (lmax+1)**2, C]
            Steerable features.
        gate : Tensor [N, E]
            Weights of the experts.

        Returns
        -------
        Tensor [N, (lmax+1)**2, C]
        """
        return self._project(self._activate(x, gate), gate)

    def activate(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """First map and activation, weighed by the ``gate``: [N, (lmax+1)**2, E * H]."""
        return torch.cat(self._activate(x, gate), dim=1)

    def project(self, hidden: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Second map to [N, (lmax+1)**2, C], linear in ``hidden`` and ``gate`` together."""
        return self._project(self._degrees(hidden), gate)

    def _degrees(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.split([2 * degree + 1 for degree in range(self.lmax + 1)], dim=1)

    def _activate(self, x: torch.Tensor, gate: torch.Tensor) -> list[torch.Tensor]:
        """Weighed activations [N, 2 l + 1, E * H] of every degree l."""
        scalars, *blocks = self._degrees(x)
        # Cast once and not in every product.
        of_scalars, *matrices = in_autocast_dtype(self.weight_in).flatten(1, 2).unbind()
        bias = self.bias_in.flatten()
        if self.weight_gate is not None:
            # Scalars and gates are maps of the same input: one product.
            of_gates = in_autocast_dtype(self.weight_gate).flatten(0, 2)
            of_scalars = torch.cat((of_scalars, of_gates))
            bias = torch.cat((bias, self.bias_gate.flatten()))
        pre_activation = nn.functional.linear(scalars.squeeze(1), of_scalars, bias)
        pre_activation = pre_activation.unflatten(-1, (self.lmax + 1, -1))
        hidden = [nn.functional.linear(b, m) for b, m in zip(blocks, matrices, strict=True)]
        if self.fused and can_fuse(pre_activation):
            # Imported here, as Triton is there on GPUs alone.
            from est_ocp.nn.triton.gated_degrees import gated_degrees

            return gated_degrees(hidden, pre_activation, gate)
        weight = gate.repeat_interleave(self.hidden_channels, dim=1)
        return self.activation.by_degree(hidden, pre_activation, weight)

    def _project(self, hidden: Sequence[torch.Tensor], gate: torch.Tensor) -> torch.Tensor:
        """Second map of every degree's activations, joined."""
        matrices = in_autocast_dtype(self.weight_out).flatten(2).unbind()
        blocks = [nn.functional.linear(h, m) for h, m in zip(hidden, matrices, strict=True)]
        bias_out = torch.einsum("ne,ec->nc", gate.to(self.bias_out.dtype), self.bias_out)
        blocks[0] = blocks[0] + bias_out.unsqueeze(1).to(blocks[0].dtype)
        return torch.cat(blocks, dim=1)

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, hidden_channels={self.hidden_channels}, "
            f"num_experts={self.num_experts}, lmax={self.lmax}"
        )
