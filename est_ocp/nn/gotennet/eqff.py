"""GotenNet's own update of the nodes."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.nn.gotennet.linear import glorot_linear


class EQFF(nn.Module):
    """Equivariant feed-forward (GotenNet, section 3.3), strictly equivariant.

    ``V = X W``; ``m_1, m_2 = W_2 silu(W_1 [h, |V|])`` with the length of all degrees together,
    one a channel; the update is ``m_1`` of the scalars and ``m_2 V`` of the rest. The length is
    computed in at least float32.

    Parameters
    ----------
    channels : int
    hidden_channels : int, optional
        Hidden width of the perceptron; `channels` in GotenNet.
    eps : float
        Added to the squared length before the root.
    """

    def __init__(
        self, channels: int, hidden_channels: int | None = None, eps: float = 1e-8
    ) -> None:
        super().__init__()
        hidden = channels if hidden_channels is None else hidden_channels
        self.eps = eps
        self.steerable_linear = glorot_linear(channels, channels, bias=False)
        self.mlp = nn.Sequential(
            glorot_linear(2 * channels, hidden), nn.SiLU(), glorot_linear(hidden, 2 * channels)
        )

    def forward(
        self,
        x: torch.Tensor,
        batch: torch.Tensor | None = None,
        num_graphs: int | None = None,
    ) -> torch.Tensor:
        """Update of ``x``; the caller adds the residual.

        Parameters
        ----------
        x : Tensor [N, (lmax+1)**2, C]
            Not normalised, as in GotenNet.
        batch, num_graphs
            Not used; every update block is called with them.

        Returns
        -------
        Tensor [N, (lmax+1)**2, C]
        """
        mixed = self.steerable_linear(x[:, 1:])
        precise = mixed.to(torch.promote_types(mixed.dtype, torch.float32))
        length = torch.sqrt(precise.square().sum(dim=1) + self.eps)
        update = self.mlp(torch.cat((x[:, 0], length.to(x.dtype)), dim=-1))
        scalars, factors = update.unsqueeze(1).chunk(2, dim=-1)
        return torch.cat((scalars, factors * mixed), dim=1)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"
