"""Initialisation of linear maps."""

from __future__ import annotations

import math

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.nn.graph_attention import EquiformerV2Attention
from est_ocp.nn.init import init_weights
from est_ocp.nn.so2_convolution import SO2PairLinear
from est_ocp.nn.so3_linear import SO3Linear
from est_ocp.sphere import make_rule


def make() -> EquiformerV2Attention:
    torch.manual_seed(0)
    attention = EquiformerV2Attention(
        16, 16, 4, 8, 8, 4, 2, 90, 32, 64, 16, make_rule("lebedev", 50)
    )
    for name, parameter in attention.named_parameters():
        if name.endswith("bias") and "norm" not in name:
            torch.nn.init.normal_(parameter)
    return attention


@pytest.mark.parametrize("weight_init", ["uniform", "normal"])
def test_distributions(weight_init: str) -> None:
    attention = make()
    init_weights(attention, weight_init)
    for name, layer in attention.named_modules():
        if not isinstance(layer, torch.nn.Linear | SO3Linear | SO2PairLinear):
            continue
        if getattr(layer, "bias", None) is not None:
            assert (layer.bias == 0).all()
        fan_in = layer.in_channels if isinstance(layer, SO3Linear) else layer.in_features
        bound = 1 / math.sqrt(fan_in)
        normal = weight_init == "normal" and "radial" not in name
        if isinstance(layer, SO2PairLinear) and not normal:
            bound /= math.sqrt(2)
        largest, spread = layer.weight.abs().max().item(), layer.weight.std().item()
        if normal:
            assert largest > 1.5 * bound
            assert spread == pytest.approx(bound, rel=0.1)
        else:
            assert largest <= bound
            assert spread == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_refuses_other_distributions() -> None:
    with pytest.raises(ConfigError, match="weight_init"):
        init_weights(make(), "xavier")
