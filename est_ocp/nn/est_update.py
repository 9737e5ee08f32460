"""EST update block: spherical attention and hybrid experts in place of a feed-forward block."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn import fused_feature
from est_ocp.nn.autocast import autocast_dtype, in_autocast_dtype
from est_ocp.nn.factored_feature import attend, num_functions
from est_ocp.nn.mixture_of_experts import MixtureOfHybridExperts
from est_ocp.nn.random_rotation import RandomRotation, rotate
from est_ocp.nn.so3_linear import SO3Linear
from est_ocp.nn.spherical_attention import SphericalAttention
from est_ocp.sphere import SphereRule, SphericalTransform


class ESTUpdateBlock(nn.Module):
    """Update of steerable node features (paper, sections 3.2 and 3.3).

    With ``h`` the features (mapped to `hidden_channels` if that differs) and ``Y`` the transform
    to the sphere::

        f = Y h / (L + 1)                      values at the points
        f = f + SphericalAttention(f)          pre-norm inside
        u = sum_e g_e Spherical_e(norm(f))     summed on the sphere, then one inverse transform
        y = (L + 1) Y^-1 u + sum_e g_e Steerable_e(h)

    and ``y`` is mapped back to `channels`. The caller normalises the input and adds the residual.
    The factor ``L + 1`` is the root mean square of ``Y h`` when the coefficients have unit
    variance: without it the attention's result, of order one, would start as a small correction
    to a residual of order ``L + 1``.

    Steerable experts are strictly equivariant; the spherical branch is equivariant up to an error
    that depends on the rule (see the project's page on equivariance).

    Parameters
    ----------
    channels : int
        Width C of input and output.
    lmax : int
        Degree L of the features, at least 1.
    rule : SphereRule
        Sampling points of the sphere.
    hidden_channels : int, optional
        Width inside ("intermediate dimension during the Fourier transform"); default `channels`.
    num_heads : int
        Heads of the attention.
    relative_orientation : bool
        Relative orientation embedding in the attention.
    inverse : {"quadrature", "diagonal", "least_squares"}
        Inverse transform.
    quadrature : bool
        Weights of the points in the attention's softmax.
    num_spherical_experts, spherical_expert_channels : int
        Spherical experts and their hidden width. With none, the attention's own result is
        transformed back; with neither, there is no spherical branch.
    num_steerable_experts, steerable_expert_channels : int
        Steerable experts and their hidden width.
    top_k : int, optional
        Keep only the K largest gate probabilities of a node; default all.
    gate : {"linear", "mlp"}
        Gate of the paper or of the authors' implementation.
    norm : {"sphere", "point", "none"}
        Normalise features on the sphere by the standard deviation of each point, as in the paper,
        or by that of the whole sphere, which is several times more equivariant, or not at all,
        for ablations.
    scalar_path : bool
        Replace the spherical branch's scalars by ``silu(W LayerNorm(h_{l=0}))``, as in the
        authors' implementation.
    random_rotation : bool
        In training, act on the sphere in a random frame, a new one for every graph and call.
    use_attention : bool
        Off leaves the attention out, for ablations.
    fused_attention : bool
        PyTorch's fused attention kernels; off if second derivatives are needed.
    fused_kernels : bool
        Fused kernels where they apply: for the whole spherical branch, kept as products
        (:mod:`est_ocp.nn.fused_feature`), or for the spherical experts, and for the activation of
        the steerable ones; off likewise.
    recompute_experts : bool
        Compute the spherical experts' hidden activations again, where no kernel does:
        one matrix product more, and the largest tensors of the block are not kept.
    factored : bool
        Where the points are many times more than coefficients and no point has a norm of its
        own, keep features on the sphere as products of functions and vectors of channels
        (:mod:`est_ocp.nn.factored_feature`): equal results with far less to compute and to
        move. Off, and in half precision, features are made at all points.

    Attributes
    ----------
    mixture : MixtureOfHybridExperts or None
        Its `gate` can be hooked for statistics and the balance loss.

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
        hidden_channels: int | None = None,
        num_heads: int = 1,
        relative_orientation: bool = True,
        inverse: str = "quadrature",
        quadrature: bool = True,
        num_spherical_experts: int = 2,
        spherical_expert_channels: int = 512,
        num_steerable_experts: int = 4,
        steerable_expert_channels: int = 256,
        top_k: int | None = None,
        gate: str = "linear",
        norm: str = "sphere",
        scalar_path: bool = False,
        random_rotation: bool = False,
        use_attention: bool = True,
        fused_attention: bool = True,
        fused_kernels: bool = True,
        recompute_experts: bool = False,
        factored: bool = True,
    ) -> None:
        super().__init__()
        if lmax < 1:
            raise ConfigError(f"an EST block needs features of degree 1 or more, got lmax = {lmax}")
        has_sphere = use_attention or num_spherical_experts > 0
        has_experts = num_spherical_experts + num_steerable_experts > 0
        if not has_sphere and not has_experts:
            raise ConfigError(
                "an EST block needs attention or experts; set use_attention, "
                "num_spherical_experts or num_steerable_experts"
            )
        for name, wanted in (("scalar_path", scalar_path), ("random_rotation", random_rotation)):
            if wanted and not has_sphere:
                raise ConfigError(
                    f"{name} belongs to the spherical branch, which is off; leave {name} out or "
                    "set num_spherical_experts or use_attention"
                )
        if top_k is not None and not has_experts:
            raise ConfigError("top_k has no meaning without experts; leave it out")
        width = channels if hidden_channels is None else hidden_channels
        self.channels = channels
        self.hidden_channels = width
        self.lmax = lmax
        mapped = width != channels
        self.map_in = SO3Linear(channels, width, lmax) if mapped else None
        self.map_out = SO3Linear(width, channels, lmax) if mapped else None
        self.transform = SphericalTransform(rule, lmax, inverse) if has_sphere else None
        self.attention = None
        if use_attention:
            self.attention = SphericalAttention(
                width,
                rule,
                num_heads,
                relative_orientation,
                quadrature,
                norm=norm,
                fused=fused_attention,
                # A constant on the sphere is all scalar: nothing of it survives the scalar path.
                bias=num_spherical_experts > 0 or not scalar_path,
            )
        self.mixture = None
        if has_experts:
            self.mixture = MixtureOfHybridExperts(
                width,
                lmax,
                rule,
                num_spherical_experts=num_spherical_experts,
                spherical_expert_channels=spherical_expert_channels,
                num_steerable_experts=num_steerable_experts,
                steerable_expert_channels=steerable_expert_channels,
                top_k=top_k,
                gate=gate,
                norm=norm,
                spherical_bias=not scalar_path,
                fused=fused_kernels,
                recompute=recompute_experts,
            )
        functions = num_functions((lmax + 1) ** 2, num_heads)
        factored = factored and use_attention and num_spherical_experts > 0 and norm != "point"
        self.factored = factored and 2 * functions <= rule.num_points
        self.fused_branch = (
            factored and fused_kernels and fused_attention and functions <= rule.num_points
        )
        self.scalar_path = None
        if scalar_path:
            self.scalar_path = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU()
            )
            nn.init.zeros_(self.scalar_path[1].bias)
        self.random_rotation = RandomRotation(lmax) if random_rotation else None

    def forward(
        self,
        x: torch.Tensor,
        batch: torch.Tensor | None = None,
        num_graphs: int | None = None,
    ) -> torch.Tensor:
        """Compute the update; the caller adds the residual.

        Parameters
        ----------
        x : Tensor [N, (lmax+1)**2, C]
            Normalised steerable features.
        batch : Tensor [N], int64, optional
            Graph of each node; used by the random rotation only. All nodes are one graph if
            it is not given.
        num_graphs : int, optional
            Number of graphs; needed with `batch` by the random rotation in training.

        Returns
        -------
        Tensor [N, (lmax+1)**2, C]
        """
        h = x if self.map_in is None else self.map_in(x)
        frame = self._frame(batch, num_graphs)
        f = attended = None
        in_frame = h if frame is None else rotate(h, frame)
        fused = self.fused_branch and fused_feature.can_fuse_feature(
            self.attention, in_frame, self.transform
        )
        factored = fused or (self.factored and autocast_dtype(h).itemsize > 2)
        if fused:
            f = fused_feature.attend(
                self.attention, in_frame, self.transform, 1.0 / (self.lmax + 1)
            )
        elif factored:
            f = attend(self.attention, in_frame / (self.lmax + 1), self.transform)
        elif self.transform is not None:
            # Rounded before the transform: the feature on the sphere, several times larger, is then
            # made and kept in autocast's type.
            f = self.transform.to_points(in_autocast_dtype(in_frame / (self.lmax + 1)))
        if self.attention is not None and not factored:
            attended = self.attention(f)
            f = f + attended
        steerable, spherical = (None, None)
        if self.mixture is not None:
            steerable, spherical = self.mixture(h, f, self.transform)
        branches = [] if steerable is None else [steerable]
        spherical = attended if spherical is None else spherical
        if spherical is not None:
            if not factored:
                spherical = self.transform.from_points(spherical)
            branches.append(self._in_place(spherical * (self.lmax + 1), frame, h[:, :1]))
        y = sum(branches[1:], start=branches[0])
        return y if self.map_out is None else self.map_out(y)

    def _frame(self, batch: torch.Tensor | None, num_graphs: int | None) -> torch.Tensor | None:
        """Wigner matrices [N or 1, I, I] of this call's random frames, if any."""
        if self.random_rotation is None or not self.training:
            return None
        if batch is None:
            return self.random_rotation(1)
        if num_graphs is None:
            raise ConfigError("random_rotation needs num_graphs together with batch in training")
        return self.random_rotation(num_graphs)[batch]

    def _in_place(
        self, y: torch.Tensor, frame: torch.Tensor | None, scalars: torch.Tensor
    ) -> torch.Tensor:
        """Coefficients [N, I, C] out of the frame, with the scalar path."""
        if frame is not None:
            y = rotate(y, frame.transpose(-1, -2))
        if self.scalar_path is None:
            return y
        return torch.cat((self.scalar_path(scalars).to(y.dtype), y[:, 1:]), dim=1)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, hidden_channels={self.hidden_channels}, lmax={self.lmax}"
