from __future__ import annotations

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.nn.random_rotation import RandomRotation, rotate
from est_ocp.sphere import spherical_harmonics
from tests.tolerances import TOL


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lmax", [0, 1, 4, 6])
def test_matrices_are_orthogonal(lmax, dtype):
    torch.manual_seed(0)
    wigner = RandomRotation(lmax).to(dtype)(8)
    assert wigner.dtype == dtype
    identity = torch.eye((lmax + 1) ** 2, dtype=dtype).expand(8, -1, -1)
    torch.testing.assert_close(wigner @ wigner.transpose(1, 2), identity, rtol=0, atol=TOL[dtype])


def test_they_rotate_spherical_harmonics():
    torch.manual_seed(0)
    wigner = RandomRotation(6).double()(5)
    points = torch.nn.functional.normalize(torch.randn(9, 3, dtype=torch.float64), dim=1)
    rotation = wigner[:, 1:4, 1:4]
    rotated_points = torch.einsum("gij,pj->gpi", rotation, points)
    expected = torch.einsum("gij,pj->gpi", wigner, spherical_harmonics(points, 6))
    torch.testing.assert_close(
        spherical_harmonics(rotated_points, 6), expected, rtol=0, atol=TOL[torch.float64]
    )
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(5, dtype=torch.float64))


def test_quaternion_of_a_known_rotation():
    """(1, 0, 0, 1) is a quarter turn about z: x goes to y."""
    wigner = RandomRotation(1).double().wigner(torch.tensor([[1.0, 0.0, 0.0, 1.0]]).double())
    x = torch.tensor([0.0, 1.0, 0.0, 0.0]).double()
    y = torch.tensor([0.0, 0.0, 1.0, 0.0]).double()
    torch.testing.assert_close(wigner[0] @ x, y)


def test_identity_and_opposite_quaternions():
    module = RandomRotation(3).double()
    one = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).double()
    torch.testing.assert_close(module.wigner(one)[0], torch.eye(16).double())
    torch.testing.assert_close(module.wigner(-one)[0], torch.eye(16).double())
    q = torch.randn(4, 4).double()
    torch.testing.assert_close(module.wigner(q), module.wigner(-3 * q))


def test_uniform_on_the_group():
    """The mean of every D^l with l > 0 over the group is 0, that of D_ij^2 is 1 / (2l+1)."""
    torch.manual_seed(0)
    wigner = RandomRotation(2).double()(20000)
    assert wigner[:, 1:, 1:].mean(dim=0).abs().max() < 0.03
    assert (wigner[:, 1:4, 1:4].square().mean(dim=0) - 1 / 3).abs().max() < 0.02
    assert (wigner[:, 4:, 4:].square().mean(dim=0) - 1 / 5).abs().max() < 0.02


def test_seeds_are_respected():
    module = RandomRotation(2)
    torch.manual_seed(3)
    first = module(2)
    torch.manual_seed(3)
    assert torch.equal(first, module(2))
    generator = torch.Generator().manual_seed(4)
    drawn = module(2, generator=generator)
    assert torch.equal(drawn, module(2, generator=torch.Generator().manual_seed(4)))
    assert not torch.equal(drawn, module(2, generator=generator))


def test_rotate_there_and_back_keeps_low_precision_features():
    torch.manual_seed(0)
    wigner = RandomRotation(4)(3)
    x = torch.randn(3, 25, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        back = rotate(rotate(x, wigner), wigner.transpose(1, 2))
    assert back.dtype == torch.bfloat16
    torch.testing.assert_close(back, x, rtol=0, atol=TOL[torch.bfloat16])


def test_no_parameters_and_nothing_in_the_state_dict():
    assert not RandomRotation(4).state_dict()
    with pytest.raises(ConfigError, match="lmax"):
        RandomRotation(-1)
