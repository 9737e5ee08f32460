"""EST message block: spherical attention and hybrid experts for every edge."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn.axial_attention import AxialAttention, CoefficientNorm
from est_ocp.nn.coefficient_index import degree_of_coefficient
from est_ocp.nn.edge_rows import EdgeRows
from est_ocp.nn.expert_gate import EdgeExpertGate
from est_ocp.nn.gather import gather
from est_ocp.nn.radial_mlp import RadialMLP
from est_ocp.nn.scatter import scatter_sum
from est_ocp.nn.so3_linear import SO3Linear
from est_ocp.nn.spherical_expert import SphericalExperts
from est_ocp.nn.steerable_expert import SteerableExperts
from est_ocp.sphere import ConstantBuffers, SphereRule, SphericalTransform


class ESTMessageBlock(ConstantBuffers):
    r"""Messages from neighbours (paper, section 3.3, figure 3b and appendix C.4).

    For an edge from ``j`` to ``i`` of length ``d`` and direction ``r``, with ``Y`` the transform
    to the sphere, ``sh`` the spherical harmonics and ``u(d)`` an envelope::

        h = A x_j + B x_i                          degree-wise linear
        e_lm = R_l(d) sh_lm(r)                     R: network of the radial basis
        f = Y h / (L + 1)
        f = f + SphericalAttention(q from norm(f), k and v from norm(Y e))
        m = h + e
        g = softmax(W m_{l=0}) u(d)
        message = (L + 1) Y^-1 sum_e g_e Spherical_e(norm(f)) + sum_e g_e Steerable_e(m)
        y_i = O sum_j message / sqrt(avg_degree)   degree-wise linear

    The paper gives the sources of queries, keys and values, the experts in parallel, their gate
    and the sum over neighbours. It leaves open, and here is chosen: what gate and steerable
    experts read (``m``: with ``h`` alone they would know nothing of the edge's geometry), the
    envelope, that ``R`` depends on the distance alone, the scale ``L + 1`` (as in
    :class:`est_ocp.nn.ESTUpdateBlock`) and the divisor. Norms are those over the whole sphere
    (:class:`est_ocp.nn.SphereNorm`), taken from coefficients where they are exact.

    What is computed where: ``A``, ``B`` and ``O`` once a node. An edge's features are ``J`` rows of
    channels: ``(L+1)^2`` of ``h``, one constant and ``num_heads L`` that attention makes
    (:class:`AxialAttention`), each with a function on the sphere. Norm and first map of the experts
    act on these rows instead of S points, and the only tensor as large as [E, S, hidden] is the
    experts' hidden activation. The rows are centred, on the nodes and in weights, so that norms
    need the rows' scalar products alone; their means, and all constants, are carried by one more
    row of ones. The inverse transform and the experts' second maps are linear: activations are
    transformed back first, mapped, multiplied by gate and envelope and summed over edges.

    Parameters
    ----------
    channels : int
        Width C of the input.
    lmax : int
        Degree L of the input, at least 1.
    rule : SphereRule
        Sampling points of the sphere.
    radial_channels : list of int
        Widths of the radial network, from the radial basis to the last hidden layer.
    hidden_channels : int
        Width D inside.
    num_heads, relative_orientation, quadrature
        As of :class:`est_ocp.nn.SphericalAttention`.
    inverse : {"quadrature", "diagonal", "least_squares"}
        Inverse transform.
    num_spherical_experts, spherical_expert_channels : int
        At least one spherical expert, and the hidden width.
    num_steerable_experts, steerable_expert_channels : int
        Steerable experts, possibly none, and their hidden width.
    top_k : int, optional
        Keep only the K largest gate probabilities of an edge.
    avg_degree : float
        Average number of neighbours.
    out_channels : int, optional
        Width of the output; default `channels`.
    lmin_out, lmax_out : int, optional
        Degrees of the output; default all.
    fused_kernels : bool
        Use the fused kernels of the experts' activations where they apply; off if second
        derivatives are needed.

    Attributes
    ----------
    gate : EdgeExpertGate or None
        Rows are edges; none with a single expert.

    Raises
    ------
    ConfigError
        If the options do not fit together.
    """

    def __init__(
        self,
        channels: int,
        lmax: int,
        rule: SphereRule,
        radial_channels: list[int],
        *,
        hidden_channels: int = 64,
        num_heads: int = 1,
        relative_orientation: bool = True,
        quadrature: bool = True,
        inverse: str = "quadrature",
        num_spherical_experts: int = 2,
        spherical_expert_channels: int = 128,
        num_steerable_experts: int = 4,
        steerable_expert_channels: int = 64,
        top_k: int | None = None,
        avg_degree: float = 1.0,
        out_channels: int | None = None,
        lmin_out: int = 0,
        lmax_out: int | None = None,
        fused_kernels: bool = True,
    ) -> None:
        super().__init__()
        if num_spherical_experts < 1 or num_steerable_experts < 0:
            raise ConfigError(
                "an EST message needs at least one spherical expert, got num_spherical_experts = "
                f"{num_spherical_experts} and num_steerable_experts = {num_steerable_experts}"
            )
        num_experts = num_spherical_experts + num_steerable_experts
        if num_experts == 1 and top_k is not None:
            raise ConfigError("top_k has no meaning with a single expert; leave it out")
        width = hidden_channels
        self.channels, self.hidden_channels, self.lmax = channels, width, lmax
        self.num_spherical_experts = num_spherical_experts
        self.factor = 1.0 / math.sqrt(avg_degree)
        self.lmin_out, self.lmax_out = lmin_out, lmax if lmax_out is None else lmax_out
        self.source = SO3Linear(channels, width, lmax)
        self.target = SO3Linear(channels, width, lmax, bias=False)
        self.radial = RadialMLP([*radial_channels, (lmax + 1) * width])
        self.attention = AxialAttention(
            width, lmax, rule, num_heads, relative_orientation, quadrature
        )
        self.gate = EdgeExpertGate(width, num_experts, top_k) if num_experts > 1 else None
        gain = math.sqrt(num_experts)
        self.spherical_norm = CoefficientNorm(width)
        self.spherical = SphericalExperts(
            width, spherical_expert_channels, num_spherical_experts, gain=gain
        )
        self.steerable: SteerableExperts | None = None
        if num_steerable_experts:
            self.steerable = SteerableExperts(
                width,
                steerable_expert_channels,
                num_steerable_experts,
                lmax,
                gain=gain,
                fused=fused_kernels,
            )
        self.transform = SphericalTransform(rule, lmax, inverse)
        self.map_out = SO3Linear(
            width,
            channels if out_channels is None else out_channels,
            self.lmax_out,
            bias=False,
            lmin=lmin_out,
        )
        self.edge_rows = EdgeRows(rule, self.transform, self.attention)
        self.fused = fused_kernels
        of_degree = degree_of_coefficient(lmax)[:, None] == torch.arange(lmax + 1)
        self.register_constant("of_degree", of_degree.double())

    def forward(
        self,
        x: torch.Tensor,
        edge_index: torch.Tensor,
        edge_sh: torch.Tensor,
        edge_scalars: torch.Tensor,
        envelope: torch.Tensor,
    ) -> torch.Tensor:
        """Messages summed at their targets; the caller adds the residual.

        Parameters
        ----------
        x : Tensor [N, (L+1)**2, C]
            Normalised steerable features.
        edge_index : Tensor [2, E]
            Row 0 sources, row 1 targets.
        edge_sh : Tensor [E, (L+1)**2]
            Harmonics of ``pos[source] - pos[target]``, component normalised.
        edge_scalars : Tensor [E, radial_channels[0]]
            Radial basis.
        envelope : Tensor [E]
            Zero at the cutoff.

        Returns
        -------
        Tensor [N, (lmax_out+1)**2 - lmin_out**2, out_channels]
            At least float32; zero for nodes without edges.
        """
        source, target = edge_index[0], edge_index[1]
        h, mean = self._ends(x, source, target)
        radial = self._radial(edge_scalars)
        directions = edge_sh.to(h.dtype).unsqueeze(-1) * self.of_degree.to(h.dtype)
        # h + e in one product: the means of h go with the row of ones.
        message = torch.baddbmm(h, torch.cat((directions, mean), dim=-1), radial)
        weights = self._weights(message[:, 0], envelope)
        spherical, steerable = weights.tensor_split([self.num_spherical_experts], dim=1)

        out = self._map_spherical(self._spherical_activation(h, radial, edge_sh), spherical)
        if self.steerable is not None:
            out = out + self.steerable(message, steerable)
        out = scatter_sum(out, target, len(x))
        out = out + self._spherical_bias(scatter_sum(spherical, target, len(x))).to(out.dtype)
        first, last = self.lmin_out**2, (self.lmax_out + 1) ** 2
        return self.map_out(out[:, first:last]).to(envelope.dtype)

    def _ends(
        self, x: torch.Tensor, source: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``h`` [E, (L+1)**2, D], centred, and the means [E, (L+1)**2, 1] taken away."""
        both = torch.stack((self.source(x), self.target(x)))
        precise = both.to(torch.promote_types(both.dtype, torch.float32))
        means = precise.mean(dim=-1, keepdim=True)
        of_source, of_target = (precise - means).to(both.dtype).unbind()
        h = gather(of_source, source) + gather(of_target, target)
        of_source, of_target = means.to(both.dtype).unbind()
        return h, gather(of_source, source) + gather(of_target, target)

    def _radial(self, edge_scalars: torch.Tensor) -> torch.Tensor:
        """``R_l`` and a row of ones, [E, L + 2, D], of one product."""
        width, last = self.hidden_channels, self.radial.net[-1]
        weight = nn.functional.pad(last.weight, (0, 0, 0, width))
        bias = nn.functional.pad(last.bias, (0, width), value=1.0)
        radial = nn.functional.linear(self.radial.net[:-1](edge_scalars), weight, bias)
        return radial.unflatten(-1, (self.lmax + 2, width))

    def _weights(self, scalars: torch.Tensor, envelope: torch.Tensor) -> torch.Tensor:
        """Gate times envelope over the root of the average degree, [E, experts], >= float32."""
        faded = (envelope * self.factor).unsqueeze(1)
        return faded if self.gate is None else self.gate(scalars) * faded

    def _spherical_activation(
        self, h: torch.Tensor, radial: torch.Tensor, edge_sh: torch.Tensor
    ) -> torch.Tensor:
        """Coefficients [E, (L+1)**2, hidden] of the spherical experts' activations."""
        degrees, ones = radial.split((self.lmax + 1, 1), dim=1)
        probes, coefficients, constant = self.attention.vectors(degrees)
        rows = torch.cat((constant.to(h.dtype), h, coefficients.to(h.dtype), ones), dim=1)
        experts, norm = self.spherical, self.spherical_norm
        own, factor = self.edge_rows.attend(self.attention, norm, rows, probes, edge_sh)
        weight = experts.weight_in.flatten(0, 1)
        bias = norm.bias_after(weight, experts.bias_in.flatten())
        fused = self.fused and self.edge_rows.can_fuse(rows)
        activate = self.edge_rows.activate_fused if fused else self.edge_rows.activate
        back = self.transform.from_points_matrix
        return activate(rows, own, factor, weight * norm.weight, bias, back)

    def _map_spherical(self, hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Weighted sum [E, (L+1)**2, D] of the second maps of the spherical experts."""
        # One product that keeps experts apart: their results are smaller than their activations.
        matrix = torch.block_diag(*self.spherical.weight_out.unbind(1))
        out = nn.functional.linear(hidden, matrix).unflatten(-1, (weights.shape[1], -1))
        scale = (weights * (self.lmax + 1)).to(out.dtype)
        return (out * scale[:, None, :, None]).sum(dim=2)

    def _spherical_bias(self, weights: torch.Tensor) -> torch.Tensor:
        """Second bias of the spherical experts [N, (L+1)**2, D], a constant: all scalar."""
        bias = self.spherical.bias_out
        scalars = (weights.to(bias.dtype) @ bias) * (self.lmax + 1)
        return nn.functional.pad(scalars.unsqueeze(1), (0, 0, 0, len(self.of_degree) - 1))

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, hidden_channels={self.hidden_channels}, lmax={self.lmax}, "
            f"degrees_out={self.lmin_out}..{self.lmax_out}"
        )
