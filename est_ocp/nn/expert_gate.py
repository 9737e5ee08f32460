"""Gates: how much every node listens to every expert."""

from __future__ import annotations

import math

import torch
from torch import nn

from est_ocp.errors import ConfigError


def keep_top_k(probabilities: torch.Tensor, top_k: int) -> torch.Tensor:
    """Zero all but each node's `top_k` largest probabilities and renormalise the kept ones.

    Parameters
    ----------
    probabilities : Tensor [N, E]
        Rows that sum to one.
    top_k : int
        Number K of experts to keep.

    Returns
    -------
    Tensor [N, E]
        Rows with `top_k` positive entries that sum to one.
    """
    kept, index = probabilities.topk(top_k, dim=-1)
    kept = kept / kept.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, index, kept)


def _check_gate(num_experts: int, top_k: int | None) -> None:
    if num_experts < 2:
        raise ConfigError(f"a gate chooses between at least 2 experts, got {num_experts}")
    if top_k is not None and not 2 <= top_k <= num_experts:
        raise ConfigError(
            f"top_k = {top_k} cannot be used with {num_experts} experts; give a number from 2 to "
            f"{num_experts}, or null for all (one renormalised probability is always 1, so with "
            "top_k = 1 the gate would never learn)"
        )


class _Gate(nn.Module):
    """Softmax of logits in at least float32, then the optional choice of the best K."""

    #: Whether the rows are edges of a graph rather than its nodes.
    per_edge = False
    #: How many of the rows, the first, are no filling of a padded batch; None for all.
    real_rows: torch.Tensor | None = None

    def __init__(self, channels: int, num_experts: int, top_k: int | None) -> None:
        super().__init__()
        _check_gate(num_experts, top_k)
        self.channels = channels
        self.num_experts = num_experts
        self.top_k = top_k
        # A module, so that a hook sees the probabilities before top-K.
        self.softmax = nn.Softmax(dim=-1)

    def _logits(self, scalars: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, scalars: torch.Tensor) -> torch.Tensor:
        """Probabilities [N, E] of the experts from a node's scalars [N, C].

        The rows sum to one; with top-K, all but K entries of a row are exactly zero. The
        arithmetic and the result are at least float32, also under autocast, because a routing
        probability rounded to bfloat16 would no longer sum to one.
        """
        with torch.autocast(scalars.device.type, enabled=False):
            weight_dtype = next(self.parameters()).dtype
            logits = self._logits(scalars.to(weight_dtype))
            precise = torch.promote_types(logits.dtype, torch.float32)
            probabilities = self.softmax(logits.to(precise))
            if self.top_k is None:
                return probabilities
            return keep_top_k(probabilities, self.top_k)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, num_experts={self.num_experts}, top_k={self.top_k}"


class ExpertGate(_Gate):
    """Linear gate ``softmax(W x_{l=0})`` (paper, eq. 14 and 45-51).

    Only scalars enter, so the probabilities are invariant. Capture them with a forward hook.

    Parameters
    ----------
    channels : int
        Width of the scalars.
    num_experts : int
        Number of experts, at least 2.
    top_k : int, optional
        Keep the K largest probabilities of a node and renormalise them. All experts are computed
        either way: top-K changes the function, not the time.

    Raises
    ------
    ConfigError
        If there are fewer than 2 experts or `top_k` is not between 2 and `num_experts`.
    """

    def __init__(self, channels: int, num_experts: int, top_k: int | None = None) -> None:
        super().__init__(channels, num_experts, top_k)
        self.linear = nn.Linear(channels, num_experts, bias=False)
        bound = 1.0 / math.sqrt(channels)
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def _logits(self, scalars: torch.Tensor) -> torch.Tensor:
        return self.linear(scalars)


class EdgeExpertGate(ExpertGate):
    """:class:`ExpertGate` of messages: its rows are edges."""

    per_edge = True


class ExpertGateMLP(_Gate):
    """Gate of the authors' implementation: softmax of SiLU of an MLP of normalised scalars.

    ``softmax(silu(W_2 silu(W_1 LayerNorm(x_{l=0}) + b_1) + b_2))``. The outer SiLU bounds the
    logits from below, so no expert's probability can be driven to zero: compared with
    :class:`ExpertGate` it is a soft choice.

    Parameters
    ----------
    channels, num_experts, top_k
        As for :class:`ExpertGate`.
    """

    def __init__(self, channels: int, num_experts: int, top_k: int | None = None) -> None:
        super().__init__(channels, num_experts, top_k)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, num_experts), nn.SiLU()
        )
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.zeros_(layer.bias)

    def _logits(self, scalars: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.norm(scalars))
