"""EST message block: spherical attention and hybrid experts for every edge."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn.axial_attention import AxialAttention, CoefficientNorm
from est_ocp.nn.expert_gate import EdgeExpertGate
from est_ocp.nn.gather import gather
from est_ocp.nn.harmonic_edge_embedding import scale_harmonics
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

    What is computed where: ``A``, ``B`` and ``O`` once a node. ``f`` at the points is a product of
    ``J = (L+1)^2 + num_heads L`` functions on the sphere, the harmonics and those that attention
    makes (:class:`AxialAttention`), with ``J`` vectors of channels, so norm and first map of the
    experts act on those ``J`` rows instead of S points, and the only tensor as large as
    [E, S, hidden] is the experts' hidden activation. The inverse transform, the sum over
    neighbours and the experts' second maps are linear: activations are transformed back and summed
    over edges first, and the second maps act once a node. Gate and envelope multiply the
    coefficients of the activations, of which there are fewer than points.

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
    fused_attention : bool
        PyTorch's fused attention kernels; off if second derivatives are needed.

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
        fused_attention: bool = True,
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
            width, lmax, rule, num_heads, relative_orientation, quadrature, fused=fused_attention
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
                width, steerable_expert_channels, num_steerable_experts, lmax, gain=gain
            )
        self.transform = SphericalTransform(rule, lmax, inverse, low_precision=True)
        self.map_out = SO3Linear(
            width,
            channels if out_channels is None else out_channels,
            self.lmax_out,
            bias=False,
            lmin=lmin_out,
        )
        self.register_constant("point_weights", rule.weights)

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
        h = gather(self.source(x), source) + gather(self.target(x), target)
        radial = self.radial(edge_scalars).unflatten(-1, (self.lmax + 1, self.hidden_channels))
        message = h + scale_harmonics(edge_sh, radial)
        weights = self._weights(message[:, 0], envelope)
        spherical, steerable = weights.tensor_split([self.num_spherical_experts], dim=1)

        hidden = self._spherical_activation(h, radial, edge_sh)
        hidden = self.transform.from_points(hidden).unflatten(-1, (self.num_spherical_experts, -1))
        scale = (spherical * (self.lmax + 1)).to(hidden.dtype)
        hidden = (hidden * scale[:, None, :, None]).flatten(-2)
        out = self._project_spherical(
            scatter_sum(hidden, target, len(x)), scatter_sum(spherical, target, len(x))
        )
        if self.steerable is not None:
            hidden = self.steerable.activate(message, steerable)
            out = out + self.steerable.project(
                scatter_sum(hidden, target, len(x)), scatter_sum(steerable, target, len(x))
            )
        first, last = self.lmin_out**2, (self.lmax_out + 1) ** 2
        return self.map_out(out[:, first:last]).to(envelope.dtype)

    def _weights(self, scalars: torch.Tensor, envelope: torch.Tensor) -> torch.Tensor:
        """Gate times envelope over the root of the average degree, [E, experts], >= float32."""
        faded = (envelope * self.factor).unsqueeze(1)
        return faded if self.gate is None else self.gate(scalars) * faded

    def _spherical_activation(
        self,
        h: torch.Tensor,
        radial: torch.Tensor,
        edge_sh: torch.Tensor,
    ) -> torch.Tensor:
        """Hidden activations of all spherical experts at the points, [E, S, hidden]."""
        band_limited = h / (self.lmax + 1)
        functions, coefficients, constant = self.attention(band_limited, radial, edge_sh)
        # Split, not sliced: the gradient of a slice is a tensor filled up with zeros.
        scalars, rest = _split_scalars(band_limited)
        rows = torch.cat((scalars + constant.unsqueeze(1), rest, coefficients), dim=1)
        harmonics = self.transform.to_points_matrix.to(functions.dtype)
        basis = torch.cat((harmonics.expand(len(h), -1, -1), functions), dim=-1)
        experts = self.spherical
        rows = nn.functional.linear(self._normalise(rows, basis), experts.weight_in.flatten(0, 1))
        scalars, rest = _split_scalars(rows)
        rows = torch.cat((scalars + experts.bias_in.flatten().to(rows.dtype), rest), dim=1)
        return nn.functional.silu(torch.bmm(basis.to(rows.dtype), rows))

    def _normalise(self, rows: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
        """Sphere norm of ``basis @ rows``, applied to ``rows`` [E, J, D]; at least float32.

        With ``G_ab = sum_s w_s basis_sa basis_sb`` the mean over the sphere of the squared feature
        is ``sum_ab G_ab (rows rows^T)_ab``, which the norm gets as coefficients of orthonormal
        functions would give it.
        """
        norm = self.spherical_norm
        with torch.autocast(rows.device.type, enabled=False):
            precise = torch.promote_types(rows.dtype, norm.weight.dtype)
            rows, basis = rows.to(precise), basis.to(precise)
            centred = rows - rows.mean(dim=-1, keepdim=True)
            gram = torch.bmm((basis * self.point_weights[:, None]).mT, basis)
            products = torch.bmm(centred, centred.mT) / rows.shape[-1]
            variance = (gram * products).sum(dim=(1, 2))
            y = centred * torch.rsqrt(variance + norm.eps)[:, None, None] * norm.weight
            scalars, rest = _split_scalars(y)
            return torch.cat((scalars + norm.bias, rest), dim=1)

    def _project_spherical(self, hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Second maps of the spherical experts, on coefficients [N, (L+1)**2, hidden]."""
        experts = self.spherical
        # The bias is a constant on the sphere: all scalar.
        out = nn.functional.linear(hidden, experts.weight_out.flatten(1))
        bias = (weights.to(experts.bias_out.dtype) @ experts.bias_out) * (self.lmax + 1)
        scalars, rest = _split_scalars(out)
        return torch.cat((scalars + bias.unsqueeze(1).to(out.dtype), rest), dim=1)

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, hidden_channels={self.hidden_channels}, lmax={self.lmax}, "
            f"degrees_out={self.lmin_out}..{self.lmax_out}"
        )


def _split_scalars(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First row of ``x`` [E, J, C], and the others."""
    return x.split((1, x.shape[1] - 1), dim=1)
