"""Point-wise nonlinearity on the sphere."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from e3nn.o3 import FromS2Grid, ToS2Grid

from est_ocp.nn.coefficient_index import num_frame_rows, order_major_index, truncation_rescale
from est_ocp.nn.edge_frame import EdgeFrame
from est_ocp.nn.s2_activation import SeparableS2Activation, activation_matrices
from est_ocp.sphere import make_rule
from tests.tolerances import TOL


def test_matrices_are_those_of_e3nns_grid() -> None:
    lmax, resolution = 4, 18
    to_grid = ToS2Grid(lmax, (resolution, resolution), normalization="component")
    from_grid = FromS2Grid((resolution, resolution), lmax, normalization="component")
    expected_to = torch.einsum("mbi,am->bai", to_grid.shb, to_grid.sha).flatten(0, 1)
    expected_from = torch.einsum("am,mbi->bai", from_grid.sha, from_grid.shb).flatten(0, 1).T
    to_points, from_points = activation_matrices(make_rule("product", (18, 18)), lmax, lmax)
    torch.testing.assert_close(to_points.float(), expected_to, rtol=0, atol=1e-6)
    torch.testing.assert_close(from_points.float(), expected_from, rtol=0, atol=1e-6)


def test_unit_variance_coefficients_give_unit_variance_values() -> None:
    to_points, _ = activation_matrices(make_rule("lebedev", 50), 4, 4)
    torch.testing.assert_close(to_points.square().sum(dim=1), torch.ones(50, dtype=torch.float64))


def test_round_trip_multiplies_by_the_squared_rescale() -> None:
    to_points, from_points = activation_matrices(make_rule("lebedev", 110), 4, 2)
    rows = order_major_index(4, 2)
    trip = (from_points @ to_points)[rows][:, rows]
    degrees = [round(index**0.5 - 0.5 + 1e-9) for index in (rows + 0.25).tolist()]
    expected = torch.diag(truncation_rescale(4, 2)[degrees] ** 2)
    assert (trip - expected).abs().max() < TOL[torch.float64]


def aliasing(num_points: int) -> float:
    """Largest change of the result under a roll about the edge, relative to its size."""
    torch.manual_seed(0)
    edges = torch.randn(40, 3, dtype=torch.float64)
    frame = EdgeFrame(4, 2).double()
    roll = frame(edges, 6 * torch.rand(40, dtype=torch.float64)) @ frame(edges).transpose(1, 2)
    x = torch.randn(40, 19, 3, dtype=torch.float64)
    scalars = torch.randn(40, 3, dtype=torch.float64)
    activation = SeparableS2Activation(make_rule("lebedev", num_points), 4, 2).double()
    out = activation(scalars, x)
    return ((activation(scalars, roll @ x) - roll @ out).norm() / out.norm()).item()


def test_error_of_equivariance_falls_with_the_degree_of_the_rule() -> None:
    errors = [aliasing(num_points) for num_points in (50, 110, 194, 434)]
    assert errors[0] < 0.1
    for coarse, fine in pairwise(errors):
        assert fine < coarse / 3
    assert errors[-1] < 1e-5


def test_scalars_come_from_their_own_input() -> None:
    torch.manual_seed(0)
    activation = SeparableS2Activation(make_rule("lebedev", 50), 3, 3)
    scalars, x = torch.randn(5, 4), torch.randn(5, 16, 4)
    out = activation(scalars, x)
    torch.testing.assert_close(out[:, 0], torch.nn.functional.silu(scalars))
    assert torch.equal(activation(scalars + 1, x)[:, 1:], out[:, 1:])


@pytest.mark.parametrize("mmax_out", [0, 1])
def test_fewer_orders_out_are_a_prefix(mmax_out: int) -> None:
    torch.manual_seed(0)
    rule = make_rule("lebedev", 50)
    scalars, x = torch.randn(5, 4), torch.randn(5, 19, 4)
    part = SeparableS2Activation(rule, 4, 2, mmax_out)(scalars, x)
    full = SeparableS2Activation(rule, 4, 2)(scalars, x)
    assert part.shape[1] == num_frame_rows(4, mmax_out)
    torch.testing.assert_close(part, full[:, : part.shape[1]])


def test_matrices_too_large_for_shared_memory_are_not_fused() -> None:
    def fused(lmax: int, mmax: int, points: int) -> bool:
        return SeparableS2Activation(make_rule("lebedev", points), lmax, mmax).fused

    assert fused(4, 2, 110)
    assert fused(6, 2, 194)
    assert not fused(6, 2, 302)
    assert not fused(6, 6, 302)
    assert not SeparableS2Activation(make_rule("lebedev", 26), 2, 2, fused=False).fused
