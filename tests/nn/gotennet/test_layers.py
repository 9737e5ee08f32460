"""GotenNet's layers: rotations, the cutoff, edges without direction, lone atoms."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.nn import ESTUpdateBlock
from est_ocp.nn.gotennet import (
    EQFF,
    GATA,
    CosineCutoff,
    ExpNormalBasis,
    GotenNetESTUpdate,
    GotenNetLayer,
    unit_harmonics,
)
from est_ocp.nn.scatter import edge_softmax, scatter_sum
from est_ocp.sphere import make_rule, spherical_harmonics
from tests.nn.rotations import random_rotation, rotate
from tests.tolerances import STRICT

CHANNELS, CUTOFF = 8, 3.0


@dataclass(frozen=True)
class Inputs:
    """Nodes, edges and their directions; the last node has no edges."""

    x: torch.Tensor
    t: torch.Tensor
    edge_index: torch.Tensor
    vec: torch.Tensor
    lmax: int

    def arguments(self) -> tuple[torch.Tensor, ...]:
        distance = self.vec.norm(dim=1)
        harmonics = unit_harmonics(self.vec, distance, self.lmax)
        return self.x, self.t, self.edge_index, harmonics, CosineCutoff(CUTOFF)(distance)

    def rotated(self, rotation: torch.Tensor) -> Inputs:
        x = rotate(self.x, rotation, self.lmax)
        return replace(self, x=x, vec=self.vec @ rotation.T)


def inputs(lmax: int = 2, nodes: int = 5, edges: int = 14) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    edge_index = torch.randint(0, nodes - 1, (2, edges), generator=generator)
    x = normal(nodes, (lmax + 1) ** 2, CHANNELS)
    return Inputs(x, normal(edges, CHANNELS), edge_index, normal(edges, 3), lmax)


def gata(lmax: int = 2, **options) -> GATA:
    """In float64, with biases that are not zero."""
    torch.manual_seed(0)
    made = GATA(CHANNELS, lmax, num_heads=2, **options).double().eval()
    return with_biases(made)


def with_biases(module: torch.nn.Module) -> torch.nn.Module:
    for name, parameter in module.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.5)
    return module


@pytest.mark.parametrize("lmax", [1, 2, 4])
def test_unit_harmonics_are_the_projects_divided_by_their_length(lmax):
    given = inputs().vec
    distance = given.norm(dim=1)
    unit = unit_harmonics(given, distance, lmax)
    full = spherical_harmonics(given / distance[:, None], lmax)[:, 1:]
    offset = 0
    for degree in range(1, lmax + 1):
        block = slice(offset, offset + 2 * degree + 1)
        assert (unit[:, block].norm(dim=1) - 1).abs().max() < STRICT
        expected = full[:, block] / math.sqrt(2 * degree + 1)
        assert (unit[:, block] - expected).abs().max() < STRICT
        offset = block.stop
    assert unit.shape[1] == offset


def test_radial_functions_vanish_at_the_cutoff_with_one_derivative():
    distance = torch.tensor([0.0, 1.5, 3.0, 4.0], dtype=torch.float64, requires_grad=True)
    fade = CosineCutoff(CUTOFF)(distance)
    basis = ExpNormalBasis(CUTOFF, 6).double()(distance)
    torch.testing.assert_close(fade.detach(), torch.tensor([1, 0.5, 0, 0]).double())
    assert basis[:2].detach().min() > 0
    assert not basis[2:].any()
    (slope,) = torch.autograd.grad(fade.sum() + basis.sum(), distance)
    assert slope[1] != 0
    assert slope[2:].abs().max() < STRICT


@pytest.mark.parametrize("lmax", [1, 2, 4])
@pytest.mark.parametrize("fade", [False, True])
def test_gata_is_strictly_equivariant(lmax, fade):
    made, given, r = gata(lmax, fade_attention=fade), inputs(lmax), random_rotation(1)
    x, t = made(*given.arguments())
    x_turned, t_turned = made(*given.rotated(r).arguments())
    assert (x - given.x).abs().max() > 0.1
    assert (t - given.t).abs().max() > 0.1
    assert (x_turned - rotate(x, r, lmax)).abs().max() < STRICT
    assert (t_turned - t).abs().max() < STRICT


@pytest.mark.parametrize("lmax", [1, 2, 4])
def test_eqff_is_strictly_equivariant(lmax):
    torch.manual_seed(0)
    made, given, r = with_biases(EQFF(CHANNELS, 12).double()), inputs(lmax), random_rotation(1)
    y = made(given.x)
    assert y[:, 1:].abs().max() > 0.1
    assert (made(rotate(given.x, r, lmax)) - rotate(y, r, lmax)).abs().max() < STRICT


def est_update(points: int, kind: str = "lebedev", **options) -> GotenNetESTUpdate:
    torch.manual_seed(0)
    rule = make_rule(kind, points)
    options = {"spherical_expert_channels": 16, "steerable_expert_channels": 12} | options
    return with_biases(GotenNetESTUpdate(CHANNELS, 2, rule, **options).double())


def test_est_update_rotates_up_to_sampling():
    given, r = inputs(), random_rotation(1)
    errors = {}
    for rule in ((14, "lebedev"), (50, "lebedev"), (64, "design"), (194, "lebedev")):
        made = est_update(*rule)
        y, turned = made(given.x), made(rotate(given.x, r, 2))
        errors[rule[0]] = ((turned - rotate(y, r, 2)).norm() / y.norm()).item()
        print(f"\n{rule[1]} {rule[0]}: {errors[rule[0]]:.1e}")
    assert 0.2 > errors[14] > 10 * errors[50] > 100 * errors[194]
    assert errors[64] < 1e-3
    assert errors[194] < 1e-5


def test_est_update_weighs_eqff_and_est():
    """The gate's two columns multiply the EST block and GotenNet's own feed-forward."""
    made, given = est_update(26), inputs()
    normalised = made.norm(given.x)
    assert isinstance(made.spherical, ESTUpdateBlock)
    assert made.spherical.mixture.steerable is None
    weights = made.gate(normalised[:, 0])[..., None, None]
    (eqff,) = made.steerable
    expected = weights[:, 0] * made.spherical(normalised) + weights[:, 1] * eqff(given.x)
    assert (made(given.x) - math.sqrt(2) * expected).abs().max() < STRICT


def test_est_update_with_more_experts_and_with_none():
    four = est_update(26, num_steerable_experts=4, num_spherical_experts=4)
    assert four.gate(inputs().x[:, 0]).shape == (5, 5)
    four(inputs().x).square().sum().backward()
    assert not [n for n, p in four.named_parameters() if p.grad is None or not p.grad.any()]
    best = est_update(26, num_steerable_experts=4, top_k=2)
    assert ((best.gate(inputs().x[:, 0]) > 0).sum(dim=1) == 2).all()
    alone = est_update(26, num_steerable_experts=0)
    assert alone.gate is None
    given = inputs().x
    assert torch.equal(alone(given), alone.spherical(alone.norm(given)))


@pytest.mark.parametrize("fade", [False, True])
def test_attention_is_the_softmax_of_every_head(fade):
    """One edge's value part, computed by hand."""
    made, given = gata(fade_attention=fade), inputs()
    x, t, edge_index, _, u = given.arguments()
    q, k, *_ = made.node_linear(x[:, 0])
    attention = torch.nn.functional.silu(made.edge_linear(t)[0])
    logits = (q[edge_index[1]] * k[edge_index[0]] * attention).unflatten(1, (2, 4)).sum(-1)
    exponentials = logits.exp()
    if fade:
        exponentials = exponentials * u[:, None]
    expected = exponentials / scatter_sum(exponentials, edge_index[1], len(x))[edge_index[1]]
    if fade:
        expected = expected * u[:, None]
    weights = edge_softmax(logits, edge_index[1], len(x), u if fade else None)
    near = u > 1e-9
    assert near.any()
    assert (weights - expected)[near].abs().max() < STRICT
    got = made._weights(q, k, made.edge_linear(t)[0], *edge_index, u, len(x))
    assert (got - weights / math.sqrt(CHANNELS)).abs().max() < STRICT


def test_faded_edges_do_not_count():
    """An edge beyond the cutoff changes nothing if attention fades, and does if it does not."""
    given = inputs()
    far = replace(
        given,
        t=torch.cat((given.t, given.t[:1])),
        edge_index=torch.cat((given.edge_index, torch.tensor([[1], [2]])), dim=1),
        vec=torch.cat((given.vec, torch.tensor([[0.0, CUTOFF + 0.1, 1.0]]).double())),
    )
    for fade, alike in ((True, True), (False, False)):
        made = gata(fade_attention=fade)
        x, x_far = made(*given.arguments())[0], made(*far.arguments())[0]
        assert ((x - x_far).abs().max() < STRICT) == alike


def test_edges_without_direction_carry_scalars_and_refine():
    made, given = gata(), inputs()
    x, t, _, harmonics, _ = given.arguments()
    own = torch.arange(len(x)).expand(2, -1)
    arguments = (t[: len(x)], own, torch.zeros_like(harmonics[: len(x)]), torch.ones(5).double())
    first = torch.cat((x[:, :1], torch.zeros_like(x[:, 1:])), dim=1)
    y, unchanged = made(first, *arguments)
    assert not y[:, 1:].any()
    assert torch.equal(unchanged, arguments[0])
    assert (y - first)[:, 0].abs().min() > 1e-6
    y, changed = made(x, *arguments)
    assert (y - x).abs().amax(dim=(0, 2)).min() > 1e-3
    assert not torch.equal(changed, arguments[0])


def test_lone_nodes_keep_their_features():
    made, given = gata(), inputs()
    x, _ = made(*given.arguments())
    assert torch.equal(x[-1], given.x[-1])
    nothing = replace(given, t=given.t[:0], edge_index=given.edge_index[:, :0], vec=given.vec[:0])
    x, t = made(*nothing.arguments())
    assert torch.equal(x, given.x)
    assert t.shape == (0, CHANNELS)


def test_layer_is_attention_and_residual_update():
    attention, update, given = gata(), EQFF(CHANNELS).double(), inputs()
    batch = torch.zeros(5, dtype=torch.int64)
    x, t = GotenNetLayer(attention, update)(*given.arguments(), batch, 1)
    y, t_expected = attention(*given.arguments())
    assert torch.equal(x, y + update(y))
    assert torch.equal(t, t_expected)


def test_last_layer_has_no_refinement():
    made, given = gata(refine_edges=False), inputs()
    _, t = made(*given.arguments())
    assert t is given.t
    assert not [n for n, _ in made.named_parameters() if "refine" in n]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GATA(10, 2, 4), "10 channels do not divide into 4 heads"),
        (lambda: GATA(8, 0, 4), "degree 1 or more"),
        (lambda: CosineCutoff(0.0), "cutoff must be positive"),
        (lambda: ExpNormalBasis(5.0, 1), "num_basis >= 2"),
        (lambda: est_update(26, top_k=3), "top_k = 3 cannot be used"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
