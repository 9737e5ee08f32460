"""Rotations into the frames of edges, against e3nn and at the poles."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from e3nn import o3

from est_ocp.errors import ConfigError
from est_ocp.nn.coefficient_index import frame_rows, order_major_index
from est_ocp.nn.edge_frame import EdgeFrame
from est_ocp.sphere import spherical_harmonics
from tests.nn.rotations import wigner

EXACT = 1e-10
AWKWARD = (
    [0.0, 1.0, 0.0],
    [0.0, -1.0, 0.0],
    [1e-7, 1.0, 0.0],
    [1e-7, -1.0, 1e-7],
    [1e-12, -2.0, -1e-12],
    [0.0, 3.5, 1e-20],
    [1.0, 0.0, 0.0],
    [0.0, 0.0, -1.0],
    [3e-3, -2.0, 1e-3],
)


@pytest.fixture
def float64_default() -> Iterator[None]:
    """e3nn's Wigner matrices have the precision of the default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def random_edges(count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(count, 3, generator=generator, dtype=torch.float64).to(dtype)


def about_x(angle: torch.Tensor) -> torch.Tensor:
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    c, s = angle.cos(), angle.sin()
    return torch.stack((one, zero, zero, zero, c, -s, zero, s, c), dim=1).reshape(-1, 3, 3)


def about_y(angle: torch.Tensor) -> torch.Tensor:
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    c, s = angle.cos(), angle.sin()
    return torch.stack((c, zero, s, zero, one, zero, -s, zero, c), dim=1).reshape(-1, 3, 3)


def pole_harmonics(lmax: int) -> torch.Tensor:
    return spherical_harmonics(torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64), lmax)[0]


@pytest.mark.parametrize("lmax", [0, 1, 2, 3, 4, 5, 6])
def test_given_rotations_agree_with_e3nn(lmax: int, float64_default: None) -> None:
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(20, 3, generator=generator, dtype=torch.float64) * 2 * torch.pi
    angles[:4] = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]]) * torch.pi
    alpha, beta, gamma = angles.unbind(1)
    frame = EdgeFrame(lmax, lmax).double()
    matrices = frame.from_rotation(about_y(alpha) @ about_x(beta) @ about_y(gamma))
    for degree in range(lmax + 1):
        expected = o3.wigner_D(degree, alpha, beta, gamma)
        rows = [i for i, (d, _) in enumerate(frame_rows(lmax, lmax)) if d == degree]
        orders = [m + degree for d, m in frame_rows(lmax, lmax) if d == degree]
        block = matrices[:, rows, degree**2 : (degree + 1) ** 2]
        assert (block - expected[:, orders]).abs().max() < EXACT


@pytest.mark.parametrize(("lmax", "mmax"), [(1, 1), (4, 2), (6, 6)])
def test_frames_are_representations_that_turn_the_edge_onto_y(lmax: int, mmax: int) -> None:
    edges = torch.cat((random_edges(30), torch.tensor(AWKWARD, dtype=torch.float64)))
    frame = EdgeFrame(lmax, mmax).double()
    matrices = frame(edges)
    directions = edges / edges.norm(dim=1, keepdim=True)
    in_frame = torch.einsum("eri,ei->er", matrices, spherical_harmonics(directions, lmax))
    rows = order_major_index(lmax, mmax)
    assert (in_frame - pole_harmonics(lmax)[rows]).abs().max() < EXACT

    # The l = 1 block is the rotation itself; all others must be its representation.
    cartesian = EdgeFrame(lmax, lmax).double()(edges)[:, :, 1:4]
    order = [frame_rows(lmax, lmax).index((1, m)) for m in (-1, 0, 1)]
    rotations = cartesian[:, order]
    expected = torch.stack([wigner(rotation, lmax) for rotation in rotations])
    assert (matrices - expected[:, rows]).abs().max() < EXACT


def test_transpose_is_the_inverse() -> None:
    matrices = EdgeFrame(4, 4).double()(random_edges(10))
    identity = torch.eye(25, dtype=torch.float64)
    assert (matrices.transpose(1, 2) @ matrices - identity).abs().max() < EXACT


def test_roll_turns_about_the_edge() -> None:
    frame = EdgeFrame(2, 2).double()
    edges, roll = random_edges(5), torch.linspace(0, 6, 5, dtype=torch.float64)
    plain, rolled = frame(edges), frame(edges, roll)
    zonal = 3
    assert (plain[:, :zonal] - rolled[:, :zonal]).abs().max() < EXACT
    # x and z rows of the l = 1 block mix as under a rotation about y.
    z_row, x_row = frame_rows(2, 2).index((1, 1)), frame_rows(2, 2).index((1, -1))
    cosine, sine = roll.cos()[:, None], roll.sin()[:, None]
    expected = cosine * plain[:, x_row] + sine * plain[:, z_row]
    assert (rolled[:, x_row] - expected).abs().max() < EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_poles_and_zero_lengths_are_finite_with_finite_gradients(dtype: torch.dtype) -> None:
    frame = EdgeFrame(6, 2).to(dtype)
    zero = [[0.0, 0.0, 0.0], [1e-30, 0.0, 0.0], [0.0, -1e-12, 1e-12]]
    edges = torch.tensor([*AWKWARD, *zero], dtype=dtype, requires_grad=True)
    matrices = frame(edges)
    assert matrices.dtype == dtype
    assert torch.isfinite(matrices).all()
    (gradient,) = torch.autograd.grad(matrices.square().sum() + matrices.sum(), edges)
    assert torch.isfinite(gradient).all()
    assert (gradient[len(AWKWARD) :] == 0).all()


def test_gradient_agrees_with_differences() -> None:
    frame = EdgeFrame(2, 2).double()
    edges = torch.cat((random_edges(2), torch.tensor([[0.1, -2.0, 0.1]], dtype=torch.float64)))
    assert torch.autograd.gradcheck(frame, edges.requires_grad_())


def test_is_the_same_in_training_and_evaluation_and_under_autocast() -> None:
    frame, edges = EdgeFrame(4, 2), random_edges(10, torch.float32)
    matrices = frame.train()(edges)
    assert torch.equal(matrices, frame.eval()(edges))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matrices, frame(edges))


@pytest.mark.parametrize("lmax", [4, 6])
def test_tables_keep_float64_through_any_cast(lmax: int) -> None:
    edges = random_edges(10)
    exact = EdgeFrame(lmax, 2).double()(edges)
    frame = copy.deepcopy(EdgeFrame(lmax, 2)).half().bfloat16().float()
    assert torch.equal(frame(edges), exact)
    assert (frame(edges.float()) - exact).abs().max() < 1e-5
    assert not frame.state_dict()


def test_no_edges() -> None:
    assert EdgeFrame(6, 2)(torch.zeros(0, 3)).shape == (0, 29, 49)


def test_compiles_as_one_graph() -> None:
    frame, edges = EdgeFrame(4, 2), random_edges(6, torch.float32)
    compiled = torch.compile(frame, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(edges), frame(edges))


def test_refuses_more_orders_than_degrees() -> None:
    with pytest.raises(ConfigError, match="mmax=3"):
        EdgeFrame(2, 3)


def test_frames_do_not_flip_with_rounding_at_directions_of_high_symmetry() -> None:
    """Edges along axes and diagonals, as in ideal slabs, moved by rounding errors."""
    steps = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    edges = torch.cartesian_prod(steps, steps, steps)
    edges = edges[edges.norm(dim=1) > 0]
    frame = EdgeFrame(2, 2).double()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        noise = 1e-7 * torch.randn(edges.shape, generator=generator, dtype=torch.float64)
        assert (frame(edges + noise) - frame(edges)).abs().max() < 1e-5
