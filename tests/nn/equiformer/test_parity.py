"""Agreement with recordings of Equiformer's block on OC20 (L = 1) and QM9 (L = 2)."""

from __future__ import annotations

import pytest
import torch

from est_ocp.nn.equiformer import edge_harmonics
from tests.nn.equiformer.original import (
    RECORDINGS,
    graph,
    recorded_block,
    recorded_rotation,
    rotated_inputs,
)
from tests.tolerances import PARITY_EQUIFORMER


def relative(ours: torch.Tensor, recorded: torch.Tensor) -> float:
    """Largest difference in units of the largest recorded value."""
    return ((ours - recorded).abs().max() / recorded.abs().max()).item()


@pytest.mark.parametrize("name", RECORDINGS)
@torch.no_grad()
def test_block_and_its_parts_agree_with_the_original(name: str) -> None:
    block, tensors = recorded_block(name)
    x = tensors["input/node_input"]
    batch = torch.zeros(len(x), dtype=torch.long)
    whole = block(x, *graph(tensors), batch, 1)
    errors = {"block": relative(whole, tensors["output/node"])}

    inner = rotated_inputs(tensors, block.irreps_in)
    x, ga_out = inner["input/node_input"], inner["record/ga_out"]
    errors["norm"] = relative(block.norm_1(x), inner["record/norm_1"])
    message = block.attention(inner["record/norm_1"], *graph(inner))
    errors["attention"] = relative(message, ga_out)
    update = block.update(block.norm_2(x + ga_out))
    errors["feed-forward"] = relative(update, inner["record/ffn_out"])
    for part, error in errors.items():
        print(f"{name} {part}: {error:.1e}")
        assert error < PARITY_EQUIFORMER, part


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_rotation_is_one(name: str) -> None:
    block, tensors = recorded_block(name)
    rotation = recorded_rotation(tensors, block.irreps_in)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    assert torch.det(rotation) > 0.999


@pytest.mark.parametrize("name", RECORDINGS)
def test_harmonics_of_the_recorded_edges(name: str) -> None:
    _, tensors = recorded_block(name)
    vec, expected = tensors["input/edge_vec"], tensors["input/edge_sh"]
    lmax = round(expected.shape[1] ** 0.5) - 1
    assert relative(edge_harmonics(vec, vec.norm(dim=1), lmax), expected) < PARITY_EQUIFORMER


@pytest.mark.parametrize("name", RECORDINGS)
@torch.no_grad()
def test_parity_depends_on_the_direction_of_edges(name: str) -> None:
    """The recording tells sources from targets, and a direction from its opposite."""
    block, tensors = recorded_block(name)
    x = tensors["input/node_input"]
    batch = torch.zeros(len(x), dtype=torch.long)
    edge_index, edge_sh, scalars = graph(tensors)
    odd = torch.ones(edge_sh.shape[1])
    odd[1:4] = -1
    for edges in ((edge_index.flip(0), edge_sh), (edge_index, edge_sh * odd)):
        out = block(x, *edges, scalars, batch, 1)
        assert relative(out, tensors["output/node"]) > 1e-2
