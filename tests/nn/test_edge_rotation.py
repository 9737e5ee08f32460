"""Edge rotations: the reference, and the order of edges that the fused kernels take."""

from __future__ import annotations

import pytest
import torch

from est_ocp.nn import edge_rotation
from est_ocp.nn.edge_rotation import (
    align_rotations,
    edge_order,
    rotate_by_order,
    rotate_to_frames,
    sum_from_frames,
)
from est_ocp.nn.triton.support import block_size, can_fuse

NODES, EDGES, ROWS, COEFFICIENTS, CHANNELS = 6, 17, 5, 9, 3


def _graph() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    # The last node has no edges.
    edge_index = torch.randint(0, NODES - 1, (2, EDGES), generator=generator)
    wigner = torch.randn(EDGES, ROWS, COEFFICIENTS, generator=generator, dtype=torch.float64)
    x = torch.randn(NODES, COEFFICIENTS, CHANNELS, generator=generator, dtype=torch.float64)
    return edge_index, wigner, x


def test_edge_order_lists_every_edge_under_its_nodes():
    edge_index, _, _ = _graph()
    permutation, offsets = edge_order(edge_index, NODES)
    assert offsets.shape == (2, NODES + 1)
    for end in range(2):
        for node in range(NODES):
            mine = permutation[end, offsets[end, node] : offsets[end, node + 1]]
            assert mine.tolist() == torch.where(edge_index[end] == node)[0].tolist()


def test_edge_order_of_no_edges():
    permutation, offsets = edge_order(torch.empty(2, 0, dtype=torch.long), 3)
    assert permutation.shape == (2, 0)
    assert offsets.tolist() == [[0] * 4] * 2


@pytest.mark.parametrize(("dtype", "row"), [(torch.float32, 12), (torch.bfloat16, 16)])
@pytest.mark.parametrize("edges", [0, EDGES])
def test_aligned_rotations_have_padded_rows(monkeypatch, dtype, row, edges):
    edge_index, wigner, _ = _graph()
    wigner = wigner[:edges].to(dtype)
    order = edge_order(edge_index[:, :edges], NODES)
    # Nothing changes where no kernel applies.
    assert align_rotations(wigner, order) is wigner
    monkeypatch.setattr(edge_rotation, "can_fuse", lambda x: True)
    assert align_rotations(wigner, None) is wigner
    differentiated = wigner.clone().requires_grad_()
    assert align_rotations(differentiated, order) is differentiated
    out = align_rotations(wigner, order)
    assert out.stride() == (ROWS * row, row, 1)
    assert torch.equal(out, wigner)
    padded = torch.as_strided(out, (edges, ROWS, row), out.stride())
    assert not padded[:, :, COEFFICIENTS:].any()


def test_rotation_edge_by_edge():
    edge_index, wigner, x = _graph()
    out = rotate_to_frames(x, wigner, edge_index)
    for edge, (source, target) in enumerate(edge_index.T.tolist()):
        torch.testing.assert_close(out[edge, :, :CHANNELS], wigner[edge] @ x[source])
        torch.testing.assert_close(out[edge, :, CHANNELS:], wigner[edge] @ x[target])


def test_sum_edge_by_edge():
    edge_index, wigner, _ = _graph()
    messages = torch.randn(EDGES, ROWS, CHANNELS, dtype=torch.float64)
    out = sum_from_frames(messages, wigner, edge_index, NODES)
    expected = torch.zeros(NODES, COEFFICIENTS, CHANNELS, dtype=torch.float64)
    for edge, target in enumerate(edge_index[1].tolist()):
        expected[target] += wigner[edge].T @ messages[edge]
    torch.testing.assert_close(out, expected)
    assert not out[NODES - 1].any()


def test_kernels_are_for_gpus():
    assert not can_fuse(torch.zeros(1))
    assert [block_size(n) for n in (1, 16, 17, 110)] == [16, 16, 32, 128]


def test_rotation_by_order_is_rotation_then_weights():
    edge_index, wigner, x = _graph()
    # Rows (l, m) of lmax = 2, mmax = 1; by order and degree their weights are 0..4.
    weight_of_row = [0, 1, 2, 3, 4, 3, 4]
    wigner = torch.cat((wigner, wigner[:, :2] + 1), dim=1)
    radial = torch.randn(EDGES, 5, 2 * CHANNELS, dtype=torch.float64)
    rows = rotate_to_frames(x, wigner, edge_index) * radial[:, weight_of_row]
    for orders, expected in ((1, [rows[:, :3]]), (2, [rows[:, :3], rows[:, 3:]])):
        weights = radial[:, : [3, 5][orders - 1]].flatten(1)
        out = rotate_by_order(x, wigner, weights, edge_index, 3, orders)
        torch.testing.assert_close(out, [part.flatten(1) for part in expected])


def test_weighted_sum_is_the_sum_of_weighted_messages():
    edge_index, wigner, _ = _graph()
    messages = torch.randn(EDGES, ROWS, 3 * CHANNELS, dtype=torch.float64)
    weights = torch.rand(EDGES, 3, dtype=torch.float64)
    out = sum_from_frames(messages, wigner, edge_index, NODES, weights=weights)
    weighted = messages * weights.repeat_interleave(CHANNELS, dim=1)[:, None]
    torch.testing.assert_close(out, sum_from_frames(weighted, wigner, edge_index, NODES))
    none = sum_from_frames(messages[:0], wigner[:0], edge_index[:, :0], NODES, weights=weights[:0])
    assert none.shape == out.shape
    assert not none.any()
