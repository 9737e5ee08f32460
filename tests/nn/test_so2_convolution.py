"""Convolutions in the edge's frame."""

from __future__ import annotations

import pytest
import torch

from est_ocp.nn.coefficient_index import frame_row_subset, frame_rows
from est_ocp.nn.edge_frame import EdgeFrame
from est_ocp.nn.so2_convolution import SO2Convolution, SO2PairLinear
from tests.tolerances import TOL

EDGES = 6


def roll_matrices(lmax: int, mmax: int) -> torch.Tensor:
    """Rotations about the polar axis on order-major rows, [EDGES, R, R]."""
    edges = torch.randn(EDGES, 3, dtype=torch.float64)
    frame = EdgeFrame(lmax, mmax).double()
    rolled = frame(edges, 6 * torch.rand(EDGES, dtype=torch.float64))
    return rolled @ frame(edges).transpose(1, 2)


def test_pair_linear_is_a_complex_product() -> None:
    torch.manual_seed(0)
    linear = SO2PairLinear(4, 3).double()
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    weight = torch.complex(*linear.weight.detach().chunk(2))
    expected = torch.complex(x[:, 0], x[:, 1]) @ weight.T
    out = linear(x.flatten(1)).unflatten(1, (2, 3))
    torch.testing.assert_close(torch.complex(out[:, 0], out[:, 1]), expected)


@pytest.mark.parametrize(
    ("lmax", "mmax", "lmin_out", "lmax_out"),
    [(4, 2, 0, 4), (3, 3, 0, 3), (4, 2, 1, 1), (4, 3, 2, 2)],
)
def test_commutes_with_rotations_about_the_edge(
    lmax: int, mmax: int, lmin_out: int, lmax_out: int
) -> None:
    torch.manual_seed(0)
    conv = SO2Convolution(
        5, 3, lmax, mmax, lmin_out=lmin_out, lmax_out=lmax_out, extra_channels=2
    ).double()
    roll = roll_matrices(lmax, mmax)
    x = torch.randn(EDGES, roll.shape[1], 5, dtype=torch.float64)
    radial = torch.randn(EDGES, conv.num_radial_weights, dtype=torch.float64)
    out, extra = conv(x, radial)
    out_rolled, extra_rolled = conv(roll @ x, radial)
    rows = frame_row_subset(lmax, mmax, lmin_out, lmax_out)
    roll_out = roll[:, rows][:, :, rows]
    assert (out_rolled - roll_out @ out).abs().max() < TOL[torch.float64]
    assert (extra_rolled - extra).abs().max() < TOL[torch.float64]
    assert (out_rolled - out).abs().max() > 0.01


def test_radial_weights_multiply_each_degree_and_channel_of_each_order() -> None:
    torch.manual_seed(0)
    conv = SO2Convolution(2, 3, 2, 1)
    rows = frame_rows(2, 1)
    radial = torch.randn(1, conv.num_radial_weights)
    blocks = radial.split([3 * 2, 2 * 2], dim=1)
    weight = [blocks[abs(m)].unflatten(1, (-1, 2))[:, degree - abs(m)] for degree, m in rows]
    x = torch.randn(1, len(rows), 2)
    torch.testing.assert_close(conv(x, radial)[0], conv(x * torch.stack(weight, dim=1))[0])


def test_fewer_output_degrees_equal_a_slice_of_the_full_convolution() -> None:
    torch.manual_seed(0)
    lmax, mmax, width = 4, 2, 3
    full = SO2Convolution(5, width, lmax, mmax)
    part = SO2Convolution(5, width, lmax, mmax, lmax_out=1)
    assert len(part.pair_linears) == 1
    pair = full.pair_linears[0].weight.unflatten(0, (2, lmax, width))[:, :1]
    part.load_state_dict(
        {
            "scalar_linear.weight": full.scalar_linear.weight[: 2 * width],
            "scalar_linear.bias": full.scalar_linear.bias[: 2 * width],
            "pair_linears.0.weight": pair.flatten(0, 2),
        }
    )
    x = torch.randn(EDGES, len(frame_rows(lmax, mmax)), 5)
    rows = frame_row_subset(lmax, mmax, 0, 1)
    torch.testing.assert_close(part(x)[0], full(x)[0][:, rows])


def test_no_edges() -> None:
    conv = SO2Convolution(5, 3, 4, 2, extra_channels=2)
    out, extra = conv(torch.zeros(0, 19, 5), torch.zeros(0, conv.num_radial_weights))
    assert out.shape == (0, 19, 3)
    assert extra.shape == (0, 2)
