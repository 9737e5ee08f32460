"""EquiformerV2's feed-forward block."""

from __future__ import annotations

from itertools import pairwise

import torch

from est_ocp.nn.grid_feed_forward import GridFeedForward
from est_ocp.sphere import make_rule
from tests.nn.rotations import random_rotation, rotate
from tests.tolerances import TOL


def make(num_points: int) -> GridFeedForward:
    torch.manual_seed(0)
    return GridFeedForward(4, 6, 5, 4, make_rule("lebedev", num_points)).double()


def rotation_error(num_points: int) -> float:
    block, rotation = make(num_points), random_rotation()
    x = 2 * torch.randn(8, 25, 4, dtype=torch.float64)
    out = block(x)
    difference = block(rotate(x, rotation, 4)) - rotate(out, rotation, 4)
    return (difference.norm() / out.norm()).item()


@torch.no_grad()
def test_error_of_equivariance_falls_with_the_degree_of_the_rule() -> None:
    errors = [rotation_error(num_points) for num_points in (50, 110, 194)]
    assert errors[0] < 0.1
    for coarse, fine in pairwise(errors):
        assert fine < coarse / 3


@torch.no_grad()
def test_scalars_depend_on_scalars_alone() -> None:
    block = make(50)
    x, other = torch.randn(2, 8, 25, 4, dtype=torch.float64)
    other[:, 0] = x[:, 0]
    difference = block(x) - block(other)
    assert difference[:, 0].abs().max() < TOL[torch.float64]
    assert difference[:, 1:].abs().max() > 0.01


@torch.no_grad()
def test_works_as_an_update_block_on_no_nodes_and_in_low_precision() -> None:
    block = make(50).float()
    x = torch.randn(8, 25, 4)
    out = block(x, torch.zeros(8, dtype=torch.long), 1)
    assert block(x[:0]).shape == (0, 25, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert (block(x) - out).abs().max() < TOL[torch.bfloat16] * out.abs().max()
