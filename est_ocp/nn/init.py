"""EquiformerV2's initialisation of linear maps."""

from __future__ import annotations

import math

from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn.radial_mlp import RadialMLP
from est_ocp.nn.so2_convolution import SO2PairLinear
from est_ocp.nn.so3_linear import SO3Linear


def init_weights(module: nn.Module, weight_init: str = "uniform") -> None:
    """Initialise the linear maps of a module in place; EST's experts keep their own start.

    Biases become zero in both modes. ``"uniform"`` keeps the weights as the layers drew them,
    uniformly in ``+-1/sqrt(fan_in)``; ``"normal"`` draws them from a normal distribution of
    variance ``1/fan_in``, but for radial networks, which stay uniform (EquiformerV2,
    arXiv 2306.12059, and its code).

    Parameters
    ----------
    module : Module
        All its linear layers, at any depth, are initialised.
    weight_init : {"uniform", "normal"}
        Distribution of the weights.

    Raises
    ------
    ConfigError
        For any other ``weight_init``.
    """
    if weight_init not in ("uniform", "normal"):
        raise ConfigError(f"weight_init must be 'uniform' or 'normal', got '{weight_init}'")
    radial = {
        id(layer)
        for parent in module.modules()
        if isinstance(parent, RadialMLP)
        for layer in parent.modules()
    }
    for layer in module.modules():
        if not isinstance(layer, nn.Linear | SO3Linear | SO2PairLinear):
            continue
        bias = getattr(layer, "bias", None)
        if bias is not None:
            nn.init.zeros_(bias)
        if weight_init == "normal" and id(layer) not in radial:
            fan_in = layer.in_channels if isinstance(layer, SO3Linear) else layer.in_features
            nn.init.normal_(layer.weight, 0.0, 1.0 / math.sqrt(fan_in))
