"""The constant part of the attention logits on the sphere."""

from __future__ import annotations

import torch
from torch import Tensor

from est_ocp.sphere.rule import SphereRule


def sphere_attention_bias(
    rule: SphereRule, scale: float, relative_orientation: bool = True, quadrature: bool = True
) -> Tensor:
    """Relative orientation embedding and quadrature weights as one bias.

    The paper (arXiv 2505.23086, eq. 13) appends each point to its query and key, ``[q_s, p_s]``
    and ``[k_t, p_t]``; the product is ``q_s . k_t + p_s . p_t``, so the embedding is a constant
    added to the logits. Attention over the sphere is an integral over ``t``, so point ``t``
    enters the softmax with its weight: ``log(S w_t)`` added to its logits, zero for equal weights.

    Parameters
    ----------
    rule : SphereRule
        Points and weights.
    scale : float
        Factor of the logits, e.g. ``1 / sqrt(d)``. Weights are not scaled.
    relative_orientation : bool
        Include ``scale * p_s . p_t``.
    quadrature : bool
        Include ``log(S w_t)``.

    Returns
    -------
    Tensor
        ``[S, S]``, float64; rows are queries, columns keys.
    """
    size = rule.num_points
    bias = torch.zeros(size, size, dtype=torch.float64, device="cpu")
    if relative_orientation:
        bias = bias + scale * (rule.points @ rule.points.T)
    if quadrature:
        bias = bias + torch.log(size * rule.weights)
    return bias
