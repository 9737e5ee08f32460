"""Layer normalisation of steerable features."""

from __future__ import annotations

import torch
from torch import nn


class EquivariantLayerNorm(nn.Module):
    """Normalise scalars by LayerNorm and all higher degrees by one common root mean square.

    The scalars get an ordinary LayerNorm over channels. For ``l > 0`` each degree's mean square
    over its orders and over the channels is averaged over the degrees, so that high degrees with
    many orders do not dominate; the features are divided by the root of that average and
    multiplied by a weight of their degree and channel. The norm of a degree is invariant, so the
    layer is strictly equivariant. It is EquiformerV2's "layer_norm_sh" (arXiv 2306.12059,
    section 4.3). The arithmetic runs in at least float32 also under autocast.

    Parameters
    ----------
    lmax : int
        Largest degree; with 0 the layer is a LayerNorm alone.
    channels : int
        Number of channels.
    eps : float
        Added to the mean squares before the root.

    Attributes
    ----------
    affine_weight : Tensor [lmax, channels]
        Row ``l - 1`` scales degree ``l``.
    """

    def __init__(self, lmax: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.lmax = lmax
        self.channels = channels
        self.eps = eps
        self.scalar_norm = nn.LayerNorm(channels, eps=eps)
        # Empty for scalars alone: data-parallel training waits for every gradient it expects.
        self.affine_weight = nn.Parameter(torch.ones(lmax, channels), requires_grad=lmax > 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x`` [N, (lmax+1)**2, C]; the result has at least float32 precision."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, self.affine_weight.dtype))
            blocks = [x[:, l * l : (l + 1) * (l + 1)] for l in range(self.lmax + 1)]  # noqa: E741
            outputs = [self.scalar_norm(blocks[0])]
            if self.lmax > 0:
                mean_square = sum(b.square().mean(dim=(1, 2), keepdim=True) for b in blocks[1:])
                scale = torch.rsqrt(mean_square / self.lmax + self.eps)
                for degree in range(1, self.lmax + 1):
                    weight = self.affine_weight[degree - 1]
                    outputs.append(blocks[degree] * (scale * weight))
            return torch.cat(outputs, dim=1)

    def extra_repr(self) -> str:
        return f"lmax={self.lmax}, channels={self.channels}, eps={self.eps}"
