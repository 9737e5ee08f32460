"""Normalisations of features on the sphere."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn.recompute import recomputed
from est_ocp.sphere import ConstantBuffers, SphereRule

NORMS = ("point", "sphere", "none")


class SphereNorm(ConstantBuffers):
    """Layer norm whose variance is the mean over the whole sphere instead of that of one point.

    ``y_s = (f_s - mean_c f_s) / sqrt(sum_t w_t var_c f_t + eps) * weight + bias``. Dividing every
    point by its own standard deviation, as LayerNorm does, multiplies a band-limited feature by
    a function that is not: it creates degrees that the points cannot resolve and breaks
    equivariance in proportion. The divisor here is one invariant number a node, so the
    normalised feature stays band-limited.

    The arithmetic runs in at least float32. For features in half precision, as EST's update has
    them under autocast, the features alone are kept for the backward pass, which computes the rest
    again in float32, and the result is rounded to their type.

    Parameters
    ----------
    channels : int
        Width C.
    rule : SphereRule
        Points and weights.
    eps : float
        Added to the variance before the root.
    """

    def __init__(self, channels: int, rule: SphereRule, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_constant("point_weights", rule.weights[:, None])

    def reset_parameters(self) -> None:
        """Set the scale to one and the bias to zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, f: torch.Tensor) -> torch.Tensor:
        """Normalise ``f`` [N, S, C]; in half precision if ``f`` is, else in float32 at least."""
        if f.dtype in (torch.bfloat16, torch.float16):
            return recomputed(self._rounded, f)
        return self._normalise(f)

    def _rounded(self, f: torch.Tensor) -> torch.Tensor:
        return self._normalise(f).to(f.dtype)

    def _normalise(self, f: torch.Tensor) -> torch.Tensor:
        with torch.autocast(f.device.type, enabled=False):
            f = f.to(torch.promote_types(f.dtype, self.point_weights.dtype))
            centred = f - f.mean(dim=-1, keepdim=True)
            variance = centred.square().mean(dim=-1, keepdim=True)
            mean_variance = (self.point_weights * variance).sum(dim=1, keepdim=True)
            return centred * torch.rsqrt(mean_variance + self.eps) * self.weight + self.bias

    def extra_repr(self) -> str:
        return f"channels={self.channels}, eps={self.eps}"


class NoNorm(nn.Module):
    """Features on the sphere as they are, for ablations of the norm."""

    def reset_parameters(self) -> None:
        """Do nothing: there are no parameters."""

    def forward(self, f: torch.Tensor) -> torch.Tensor:
        """Return ``f`` [N, S, C]."""
        return f


def spatial_norm(kind: str, channels: int, rule: SphereRule) -> nn.Module:
    """Normalisation of features [N, S, C] on the sphere.

    Parameters
    ----------
    kind : {"point", "sphere", "none"}
        LayerNorm at every point, as in the paper, :class:`SphereNorm`, or :class:`NoNorm`.
    channels : int
        Width C.
    rule : SphereRule
        Points and weights.

    Returns
    -------
    Module
        With parameters ``weight`` and ``bias`` [C]; "none" has no parameters.

    Raises
    ------
    ConfigError
        If the kind is unknown.
    """
    if kind == "point":
        return nn.LayerNorm(channels)
    if kind == "sphere":
        return SphereNorm(channels, rule)
    if kind == "none":
        return NoNorm()
    raise ConfigError(f"unknown norm '{kind}' on the sphere; choose one of {', '.join(NORMS)}")
