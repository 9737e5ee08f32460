"""Linear maps of several experts, each of its own rows."""

from __future__ import annotations

import torch

from est_ocp.nn.autocast import in_autocast_dtype

#: From so many experts on their weights' gradients fill a GPU as one batched product. That product
#: does not split its sums over all rows, which a product by itself does.
MANY_EXPERTS = 8


def expert_products(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Apply the experts' maps.

    Parameters
    ----------
    hidden : Tensor [E, N, I, H]
        Rows of each expert, perhaps lying apart.
    weight : Tensor [C, E, H]

    Returns
    -------
    Tensor [E, N, I, C]
        In autocast's type where that is on.
    """
    rows = in_autocast_dtype(hidden).flatten(1, 2)
    maps = in_autocast_dtype(weight).transpose(0, 1)
    return _ExpertProducts.apply(rows, maps).unflatten(1, hidden.shape[1:3])


class _ExpertProducts(torch.autograd.Function):
    """``rows_e maps_e^T`` with the gradients of few experts' weights as products by themselves."""

    @staticmethod
    def forward(rows: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        return torch.bmm(rows, maps.mT)

    @staticmethod
    def setup_context(ctx, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, maps = ctx.saved_tensors
        if len(rows) < MANY_EXPERTS:
            pairs = zip(grad.unbind(), rows.unbind(), strict=True)
            grad_maps = torch.stack([torch.mm(g.T, r) for g, r in pairs])
        else:
            grad_maps = torch.bmm(grad.mT, rows)
        return torch.bmm(grad, maps), grad_maps
