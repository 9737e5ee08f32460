"""Mixture of GotenNet's feed-forward blocks and the EST update."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from est_ocp.nn.est_update import ESTUpdateBlock
from est_ocp.nn.gotennet.eqff import EQFF
from est_ocp.nn.layer_norm import EquivariantLayerNorm
from est_ocp.nn.mixture_of_experts import GATES
from est_ocp.sphere import SphereRule


class GotenNetESTUpdate(nn.Module):
    """EQFF as steerable expert, the EST update block as spherical expert (paper, section D.3).

    ``y = sqrt(E) (g_0 EST(norm(x)) + sum_e g_e EQFF_e(x))`` with the gate g of the scalars of
    ``norm(x)`` over all E experts. EQFF reads the features as they are, as in GotenNet, so that
    the host's own branch is unchanged; EST reads normalised ones, as everywhere. The constant
    makes the size of y at the start independent of E, as in
    :class:`est_ocp.nn.MixtureOfHybridExperts`.

    The paper says that the steerable part keeps EQFF's architecture, that the EST update module is
    the spherical part in parallel, and that there is one of each. It does not say what the gate
    and the norm read, nor what EST's own part contains: here it is spherical attention and, behind
    it, the spherical feed-forward, without steerable experts of its own. Table 12 also lists four
    experts of each kind for some targets; then the spherical ones share a gate inside the EST
    block.

    Parameters
    ----------
    channels, lmax : int
    rule : SphereRule
        Sampling points of the sphere.
    num_steerable_experts, steerable_expert_channels : int
        Number of EQFFs, and the hidden width of their perceptrons. With none, EST is alone.
    top_k : int, optional
        Keep only the K largest gate probabilities of a node; default all.
    gate : {"linear", "mlp"}
        Gate of the paper or of the authors' implementation.
    **options
        Of :class:`est_ocp.nn.ESTUpdateBlock`.

    Raises
    ------
    ConfigError
        If the options leave nothing to compute or contradict each other.
    """

    def __init__(
        self,
        channels: int,
        lmax: int,
        rule: SphereRule,
        *,
        num_steerable_experts: int = 1,
        steerable_expert_channels: int = 512,
        top_k: int | None = None,
        gate: str = "linear",
        **options: Any,
    ) -> None:
        super().__init__()
        self.norm = EquivariantLayerNorm(lmax, channels)
        self.spherical = ESTUpdateBlock(
            channels, lmax, rule, num_steerable_experts=0, gate=gate, **options
        )
        self.steerable = nn.ModuleList(
            EQFF(channels, steerable_expert_channels) for _ in range(num_steerable_experts)
        )
        num_experts = 1 + num_steerable_experts
        self.gate = GATES[gate](channels, num_experts, top_k) if num_steerable_experts else None
        self.gain = math.sqrt(num_experts)

    def forward(
        self,
        x: torch.Tensor,
        batch: torch.Tensor | None = None,
        num_graphs: int | None = None,
    ) -> torch.Tensor:
        """Update of ``x`` [N, (lmax+1)**2, C], not normalised; the caller adds the residual.

        ``batch`` [N] and ``num_graphs`` are those of :class:`est_ocp.nn.ESTUpdateBlock`.
        """
        normalised = self.norm(x)
        spherical = self.spherical(normalised, batch, num_graphs)
        if self.gate is None:
            return spherical
        weights = (self.gain * self.gate(normalised[:, 0])).unbind(-1)
        update = weights[0][:, None, None].to(spherical.dtype) * spherical
        for weight, expert in zip(weights[1:], self.steerable, strict=True):
            update = update + weight[:, None, None].to(x.dtype) * expert(x)
        return update

    def extra_repr(self) -> str:
        return f"gain={self.gain:.4g}"
