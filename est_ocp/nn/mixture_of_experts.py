"""Mixture of steerable and spherical experts behind one gate."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn.expert_gate import ExpertGate, ExpertGateMLP
from est_ocp.nn.factored_feature import FactoredFeature
from est_ocp.nn.fused_feature import FusedFeature
from est_ocp.nn.sphere_norm import spatial_norm
from est_ocp.nn.spherical_expert import SphericalExperts
from est_ocp.nn.steerable_expert import SteerableExperts
from est_ocp.sphere import SphereRule, SphericalTransform

GATES = {"linear": ExpertGate, "mlp": ExpertGateMLP}


class MixtureOfHybridExperts(nn.Module):
    """Feed-forward part of EST: experts of two kinds, weighted by one gate (eq. 14 and 48-51).

    The gate reads the node's scalars. Spherical experts act on the normalised feature on the
    sphere, steerable experts on the coefficients; each kind's gate-weighted sum is returned in
    its own representation, so that one inverse transform serves all spherical experts. Columns
    of the gate: first the spherical, then the steerable experts. With a single expert there is
    nothing to weigh and `gate` is None.

    A dense gate starts near ``1/E`` each, and a sum of E independent experts so weighted would
    be ``sqrt(E)`` times smaller than one expert; the experts' second weights therefore start
    ``sqrt(E)`` times larger, which makes the output at the start independent of E.

    Parameters
    ----------
    channels, lmax : int
        Width and degree of the features.
    rule : SphereRule
        Points that the spherical experts act on.
    num_spherical_experts, spherical_expert_channels : int
        Number and hidden width of the spherical experts; number 0 leaves them out.
    num_steerable_experts, steerable_expert_channels : int
        Number and hidden width of the steerable experts; number 0 leaves them out.
    top_k : int, optional
        Keep only the K largest gate probabilities of a node.
    gate : {"linear", "mlp"}
        :class:`ExpertGate` or the authors' :class:`ExpertGateMLP`.
    norm : {"sphere", "point", "none"}
        Normalisation before the spherical experts, see
        :func:`est_ocp.nn.sphere_norm.spatial_norm`.
    spherical_bias : bool
        Output bias of the spherical experts; it only reaches scalars.
    fused : bool
        Use the fused kernels of :class:`SphericalExperts` and :class:`SteerableExperts` where they
        apply.
    recompute : bool
        Compute the spherical experts' hidden activations again in the backward pass, where no
        kernel does.

    Attributes
    ----------
    gate : ExpertGate, ExpertGateMLP or None
        A forward hook on it sees the probabilities [N, E].

    Raises
    ------
    ConfigError
        If there is no expert, the gate is unknown, or `top_k` does not fit.
    """

    def __init__(
        self,
        channels: int,
        lmax: int,
        rule: SphereRule,
        *,
        num_spherical_experts: int = 2,
        spherical_expert_channels: int = 512,
        num_steerable_experts: int = 4,
        steerable_expert_channels: int = 256,
        top_k: int | None = None,
        gate: str = "linear",
        norm: str = "sphere",
        spherical_bias: bool = True,
        fused: bool = True,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        num_experts = num_spherical_experts + num_steerable_experts
        if num_experts < 1 or min(num_spherical_experts, num_steerable_experts) < 0:
            raise ConfigError(
                "a mixture needs at least one expert, got num_spherical_experts = "
                f"{num_spherical_experts} and num_steerable_experts = {num_steerable_experts}"
            )
        if gate not in GATES:
            raise ConfigError(f"unknown gate '{gate}'; choose one of {', '.join(sorted(GATES))}")
        if num_experts == 1 and top_k is not None:
            raise ConfigError("top_k has no meaning with a single expert; leave it out")
        self.num_spherical_experts = num_spherical_experts
        self.num_steerable_experts = num_steerable_experts
        gain = math.sqrt(num_experts)
        self.gate = GATES[gate](channels, num_experts, top_k) if num_experts > 1 else None
        self.spherical_norm: nn.Module | None = None
        self.spherical: SphericalExperts | None = None
        if num_spherical_experts:
            self.spherical_norm = spatial_norm(norm, channels, rule)
            self.spherical = SphericalExperts(
                channels,
                spherical_expert_channels,
                num_spherical_experts,
                gain=gain,
                bias=spherical_bias,
                fused=fused,
                recompute=recompute,
            )
        self.steerable: SteerableExperts | None = None
        if num_steerable_experts:
            self.steerable = SteerableExperts(
                channels,
                steerable_expert_channels,
                num_steerable_experts,
                lmax,
                gain=gain,
                fused=fused,
            )

    def forward(
        self,
        x: torch.Tensor,
        f: torch.Tensor | FactoredFeature | FusedFeature | None = None,
        transform: SphericalTransform | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Apply gate and experts.

        Parameters
        ----------
        x : Tensor [N, (lmax+1)**2, C]
            Coefficients: input of the gate (l = 0) and of the steerable experts.
        f : Tensor [N, S, C], FactoredFeature or FusedFeature, optional
            Feature on the sphere, input of the spherical experts; needed if there are any.
        transform : SphericalTransform, optional
            Way back to coefficients, needed with a factored feature.

        Returns
        -------
        steerable : Tensor [N, (lmax+1)**2, C] or None
            Weighted sum of the steerable experts; None if there are none.
        spherical : Tensor [N, S, C] or None
            Weighted sum of the spherical experts; None if there are none. Of a factored feature
            its coefficients [N, (lmax+1)**2, C].
        """
        scalars = x[:, 0]
        probabilities = scalars.new_ones(len(x), 1) if self.gate is None else self.gate(scalars)
        steerable = spherical = None
        if self.steerable is not None:
            weights = probabilities[:, self.num_spherical_experts :]
            steerable = self.steerable(x, weights)
        if self.spherical is not None:
            weights = probabilities[:, : self.num_spherical_experts]
            if isinstance(f, torch.Tensor):
                spherical = self.spherical(self.spherical_norm(f), weights)
            else:
                spherical = f.apply_experts(self.spherical_norm, self.spherical, weights, transform)
        return steerable, spherical
