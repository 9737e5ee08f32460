"""Products of many small matrices, in the shapes and with the gradients that suit a GPU."""

from __future__ import annotations

import torch
from torch import nn

#: Rows of so many numbers are what fast matrix products read at once.
ALIGNMENT = 4


def pad_points(values: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
    """Fill up the last axis [..., S], points of the sphere, to a multiple of `ALIGNMENT`."""
    return nn.functional.pad(values, (0, -values.shape[-1] % ALIGNMENT), value=fill)


class _RowProducts(torch.autograd.Function):
    """The rows' gradient is one product on top of another: plain products would add up three."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: torch.Tensor, probes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.bmm(rows, rows.mT), torch.bmm(probes, rows.mT)

    @staticmethod
    def setup_context(
        ctx, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(
        ctx, grad_own: torch.Tensor, grad_probed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, probes = ctx.saved_tensors
        # As precise as the products, even if called under autocast.
        with torch.autocast(rows.device.type, enabled=False):
            grad_rows = torch.bmm(grad_own + grad_own.mT, rows)
            grad_rows = torch.baddbmm(grad_rows, grad_probed.mT, probes)
            return grad_rows, torch.bmm(grad_probed, rows)


def row_products(rows: torch.Tensor, probes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scalar products of the rows of many matrices.

    Parameters
    ----------
    rows : Tensor [E, J, D]
    probes : Tensor [E, K, D]

    Returns
    -------
    Tensor [E, J, J]
        Of the rows among each other.
    Tensor [E, K, J]
        Of the probes with the rows.
    """
    return _RowProducts.apply(rows, probes)
