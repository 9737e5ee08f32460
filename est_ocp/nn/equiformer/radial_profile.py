"""Radial network of Equiformer."""

from __future__ import annotations

import math

from torch import nn

from est_ocp.nn.radial_mlp import RadialMLP


class RadialProfile(RadialMLP):
    """Linear layers with LayerNorm and SiLU, from an edge's scalars to path weights.

    The start is Equiformer's: weights uniform in ``+-1/sqrt(fan-in)``, hidden biases zero, the
    last bias (the original's "offset") uniform in the same range as its weights.

    Parameters
    ----------
    channels : list of int
        Widths from input to output.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__(channels)
        for layer in self.net[:-1]:
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
        bound = 1.0 / math.sqrt(channels[-2])
        nn.init.uniform_(self.net[-1].bias, -bound, bound)
