"""Layer norm of irreps of unequal widths."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.nn.equiformer.layout import IrrepsLayout


class IrrepsLayerNorm(nn.Module):
    """Normalise every degree by its own root mean square (Equiformer's "layer" norm).

    Scalars are centred first, and have a bias. Degree ``l`` is divided by
    ``sqrt(mean_{m, c} x_{lmc}^2 + eps)`` and multiplied by a weight of its channel; the divisor
    is invariant, so the layer is equivariant (arXiv 2206.11990, section 4.1). The arithmetic
    runs in at least float32.

    Parameters
    ----------
    irreps : IrrepsLayout
    eps : float
        Added to the mean squares before the root.

    Attributes
    ----------
    weight : Parameter [sum of widths]
        By degree.
    bias : Parameter [scalars] or None
    """

    def __init__(self, irreps: IrrepsLayout, eps: float = 1e-5) -> None:
        super().__init__()
        self.irreps = irreps
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(sum(irreps.widths)))
        if irreps.width(0):
            self.bias = nn.Parameter(torch.zeros(irreps.width(0)))
        else:
            self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise flat features ``x`` [N, dim]; the result has at least float32 precision."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, self.weight.dtype))
            weights = self.weight.split(self.irreps.widths)
            out = []
            for degree, block, weight in zip(
                self.irreps.degrees, self.irreps.split(x), weights, strict=True
            ):
                if degree == 0:
                    block = block - block.mean(dim=2, keepdim=True)
                mean_square = block.square().mean(dim=(1, 2), keepdim=True)
                block = block * (torch.rsqrt(mean_square + self.eps) * weight)
                out.append(block + self.bias if degree == 0 else block)
            return self.irreps.join(out)

    def extra_repr(self) -> str:
        return f"{self.irreps}, eps={self.eps}"
