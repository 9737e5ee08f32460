"""Update blocks between irreps and the whole layer."""

from __future__ import annotations

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.nn import ESTUpdateBlock
from est_ocp.nn.equiformer import (
    EquiformerBlock,
    IrrepsESTUpdate,
    IrrepsFeedForward,
    IrrepsLayout,
)
from est_ocp.sphere import make_rule
from tests.nn.equiformer.features import (
    IRREPS,
    NUM_NODES,
    attention,
    edges,
    flat,
    no_edges,
    rotated_edges,
)
from tests.nn.equiformer.original import rotate_flat
from tests.nn.rotations import random_rotation
from tests.tolerances import TOL

EXACT = {"atol": TOL[torch.float64], "rtol": 0}
OPTIONS = {
    "num_spherical_experts": 2,
    "spherical_expert_channels": 8,
    "num_steerable_experts": 2,
    "steerable_expert_channels": 6,
}
#: Rotation error of the EST update at lmax = 2 with 302 points (degree 29).
SAMPLING = 1e-5
OUTPUTS = pytest.mark.parametrize("out", ["6x0e+4x1e+2x2e", "9x0e", "9x0e+9x1e"])
KINDS = pytest.mark.parametrize("kind", ["est", "feed-forward"])


def update(kind: str, out: IrrepsLayout = IRREPS, points: int = 302) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "feed-forward":
        return IrrepsFeedForward(IRREPS, IrrepsLayout("8x0e+5x1e+3x2e"), out).double()
    return IrrepsESTUpdate(IRREPS, out, 8, make_rule("lebedev", points), **OPTIONS).double()


def block(kind: str, out: IrrepsLayout = IRREPS, drop_path: float = 0.0) -> EquiformerBlock:
    made = EquiformerBlock(IRREPS, out, attention(), update(kind, out), drop_path)
    return made.double().eval()


@KINDS
@OUTPUTS
@torch.no_grad()
def test_whole_layer_is_equivariant(kind, out):
    layout = IrrepsLayout(out)
    module = block(kind, layout)
    x, graph, rotation = flat(IRREPS, NUM_NODES), edges(), random_rotation()
    batch = torch.zeros(NUM_NODES, dtype=torch.long)
    before = module(x, *graph, batch, 1)
    turned = (rotate_flat(x, IRREPS, rotation), *rotated_edges(graph, rotation))
    difference = module(*turned, batch, 1) - rotate_flat(before, layout, rotation)
    tolerance = SAMPLING if kind == "est" else TOL[torch.float64]
    assert before.shape == (NUM_NODES, layout.dim)
    assert difference.abs().max() < tolerance * before.abs().max()


@torch.no_grad()
def test_est_update_maps_in_and_out():
    """It is the existing block between two degree-wise maps."""
    module = update("est", IrrepsLayout("9x0e+3x2e"))
    assert isinstance(module.block, ESTUpdateBlock)
    x = flat(IRREPS, 5)
    inner = torch.cat(module.map_in(IRREPS.split(x)), dim=1)
    assert inner.shape == (5, 9, 8)
    y = module.block(inner)
    expected = torch.cat(
        (
            y[:, 0] @ module.map_out.weights[0].T + module.map_out.bias,
            (y[:, 4:9] @ module.map_out.weights[1].T).transpose(1, 2).flatten(1),
        ),
        dim=1,
    )
    torch.testing.assert_close(module(x), expected, **EXACT)


def test_est_update_needs_every_degree():
    with pytest.raises(ConfigError, match="all degrees up to 2"):
        IrrepsESTUpdate(IrrepsLayout("4x0e+4x2e"), IRREPS, 8, make_rule("lebedev", 26))


def test_feed_forward_computes_only_what_reaches_the_output():
    module = update("feed-forward", IrrepsLayout("9x0e"))
    assert str(module.gate.irreps_in) == "8x0e"
    module(flat(IRREPS, 5)).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in module.parameters())


@KINDS
def test_every_parameter_of_a_layer_has_a_gradient(kind):
    module = block(kind).train()
    batch = torch.zeros(NUM_NODES, dtype=torch.long)
    out = module(flat(IRREPS, NUM_NODES), *edges(), batch, 1)
    (out * flat(IRREPS, NUM_NODES, seed=5)).sum().backward()
    dead = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


@torch.no_grad()
def test_residuals_and_shortcut():
    out = IrrepsLayout("9x0e")
    module = block("feed-forward", out)
    for parameter in (*module.attention.projection.parameters(), *module.update.parameters()):
        parameter.zero_()
    x = flat(IRREPS, NUM_NODES)
    batch = torch.zeros(NUM_NODES, dtype=torch.long)
    expected = x[:, :6] @ module.shortcut.weights[0].T
    torch.testing.assert_close(module(x, *edges(), batch, 1), expected, **EXACT)
    assert block("feed-forward").shortcut is None


@torch.no_grad()
def test_drop_path_drops_whole_graphs_in_training():
    module = block("feed-forward", drop_path=0.5).train()
    x = flat(IRREPS, NUM_NODES)
    batch = torch.arange(NUM_NODES)
    torch.manual_seed(1)
    out = module(x, *no_edges(), batch, NUM_NODES)
    kept = (out != x).any(dim=1)
    assert 0 < kept.sum() < NUM_NODES
    module.eval()
    assert (module(x, *no_edges(), batch, NUM_NODES) != x).any(dim=1).all()
