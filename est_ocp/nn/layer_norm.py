"""Layer normalisation of steerable features."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.nn.coefficient_index import degree_of_coefficient, degree_selection
from est_ocp.sphere import ConstantBuffers


class EquivariantLayerNorm(ConstantBuffers):
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
        if lmax > 0:
            # Shares of the rows above l = 0 in the mean over degrees of means over orders.
            shares = 1.0 / (lmax * (2.0 * degree_of_coefficient(lmax)[1:].double() + 1.0))
            self.register_constant("row_shares", shares[:, None] / channels)
            self.register_constant("selection", degree_selection(lmax, 1)[:, :, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x`` [N, (lmax+1)**2, C]; the result has at least float32 precision."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, self.affine_weight.dtype))
            scalars = self.scalar_norm(x[:, :1])
            if self.lmax == 0:
                return scalars
            rest = x[:, 1:]
            mean_square = (rest.square() * self.row_shares).sum(dim=(1, 2), keepdim=True)
            # Not a matrix product, which would round to TF32 where that is allowed.
            weight = (self.selection * self.affine_weight).sum(dim=1)
            return torch.cat((scalars, rest * torch.rsqrt(mean_square + self.eps) * weight), dim=1)

    def extra_repr(self) -> str:
        return f"lmax={self.lmax}, channels={self.channels}, eps={self.eps}"
