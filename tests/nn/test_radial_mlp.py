"""Radial networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.nn.radial_mlp import ElementRadialMLP, RadialMLP


def test_layers() -> None:
    kinds = [type(layer) for layer in RadialMLP([4, 5, 6, 7]).net]
    hidden = [nn.Linear, nn.LayerNorm, nn.SiLU]
    assert kinds == [*hidden, *hidden, nn.Linear]
    assert [type(layer) for layer in RadialMLP([4, 7]).net] == [nn.Linear]
    with pytest.raises(ConfigError, match="widths"):
        RadialMLP([4])


def test_equals_the_network_on_concatenated_inputs() -> None:
    torch.manual_seed(0)
    radial = ElementRadialMLP(8, 6, 5, max_num_elements=20).double()
    for embedding in (radial.source_embedding, radial.target_embedding):
        nn.init.normal_(embedding.weight)
    scalars = torch.randn(11, 8, dtype=torch.float64)
    numbers = torch.randint(1, 20, (4,))
    edge_index = torch.randint(0, 4, (2, 11))
    inputs = torch.cat(
        (
            scalars,
            radial.source_embedding(numbers[edge_index[0]]),
            radial.target_embedding(numbers[edge_index[1]]),
        ),
        dim=1,
    )
    torch.testing.assert_close(radial(scalars, numbers, edge_index), radial.mlp(inputs))


def test_no_edges() -> None:
    radial = ElementRadialMLP(8, 6, 5, max_num_elements=20)
    out = radial(torch.zeros(0, 8), torch.ones(3, dtype=torch.long), torch.zeros(2, 0).long())
    assert out.shape == (0, 5)
