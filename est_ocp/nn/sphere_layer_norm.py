"""Layer normalisation of features on the sphere that adds no new harmonics."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.sphere import ConstantBuffers, SphereRule


class SphereLayerNorm(ConstantBuffers):
    """LayerNorm over channels whose variance is averaged over the sphere.

    ``(f - mean_c f) / sqrt(mean_{s,c} (f - mean_c f)^2 + eps) * weight + bias`` with the rule's
    weights in the mean over points. The mean over channels is taken at each point and is linear;
    the variance is one number a node, so the division is by an invariant. A LayerNorm applied at
    each point on its own, as the paper has it (section 3.2.2), divides by a function of the
    point instead: where the variance over channels changes with direction, that quotient has
    harmonics far above any rule's degree, and their aliasing dominates the error of equivariance.

    The arithmetic and the result are at least float32, also under autocast.

    Parameters
    ----------
    channels : int
        Width C.
    rule : SphereRule
        Points of the features.
    eps : float
        Added to the variance.
    """

    def __init__(self, channels: int, rule: SphereRule, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_constant("point_weights", rule.weights)

    def reset_parameters(self) -> None:
        """Unit weights and zero biases."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, f: torch.Tensor) -> torch.Tensor:
        """Normalise ``f`` [N, S, C]."""
        with torch.autocast(f.device.type, enabled=False):
            f = f.to(torch.promote_types(f.dtype, self.weight.dtype))
            f = f - f.mean(dim=-1, keepdim=True)
            variance = torch.matmul(f.square().mean(dim=-1), self.point_weights)
            scale = torch.rsqrt(variance + self.eps)
            return f * scale[:, None, None] * self.weight + self.bias

    def extra_repr(self) -> str:
        return f"channels={self.channels}, eps={self.eps}"
