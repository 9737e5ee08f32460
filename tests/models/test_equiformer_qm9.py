"""Equiformer's QM9 variants: the published size, both radial bases, no tags, degree 2."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from torch import nn

from est_ocp.models import (
    EquiformerBaseline,
    EquiformerEST,
    ESTNetwork,
    MolecularPropertyHead,
)
from est_ocp.models.padding import PaddedSize, Padding
from est_ocp.nn import BesselBasis
from est_ocp.nn.equiformer import LearnableGaussianBasis
from tests.models import systems
from tests.models.no_host_sync import NoHostSync
from tests.models.small import merge
from tests.models.small_equiformer import both, model
from tests.tolerances import TOL
from tests.training.launch import CONFIGS

MODELS = CONFIGS.parent / "est_ocp" / "configs" / "model"
CLASSES = {
    f"est_ocp.models.{c.__name__}": c for c in (EquiformerBaseline, EquiformerEST, ESTNetwork)
}
SMALL: dict[str, Any] = {
    "irreps": "8x0e+4x1e+2x2e",
    "lmax_sh": 2,
    "use_tags": False,
    "max_num_elements": 10,
    "message": {"head": "4x0e+2x1e+2x2e", "hidden": "8x0e+4x1e+2x2e"},
}
FEED_FORWARD = {"update": {"hidden": "12x0e+6x1e+4x2e"}}


def molecules():
    """Two molecules without a cell, as QM9's."""
    ethanol = systems.molecule("CH3CH2OH")
    ethanol.rattle(0.05, seed=1)
    return systems.collate([ethanol, systems.water()])


def small(baseline: bool = True, **changes: Any):
    return model(
        baseline=baseline,
        vectors=True,
        **merge(SMALL | (FEED_FORWARD if baseline else {}), changes),
    )


def configured(name: str) -> nn.Module:
    """The backbone of a QM9 model config, with scalar output."""
    backbone = yaml.safe_load((MODELS / f"{name}.yaml").read_text())["backbone"]
    backbone["lmax_out"] = 0
    return CLASSES[backbone.pop("model")](**backbone)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_equiformer_has_the_published_size_but_for_what_never_learns():
    """3.53M (arXiv 2206.11990), of which 0.13M cannot reach the output or multiply zeros."""
    head = 512 * 512 + 512 + 512 + 1
    # Hidden vectors and tensors of the last feed-forward, whose output is scalar.
    last_feed_forward = (128 + 1) * (192 + 96) + 64 * 192 + 32 * 96
    # The edge-degree embedding's weights for the vectors and tensors of a constant, and its bias.
    paths = 6 * 64 + 6 * 32
    products = (64 + 32) * 128 + (3 * 64 + 2 * 32) * 64 + (2 * 64 + 3 * 32) * 32
    edge_degree = 128 + (64 + 1) * paths + products
    # A one-hot vector of 5 elements and a bias in place of a table of 10.
    embedding = (5 + 1 - 10) * 128
    made = configured("qm9_equiformer")
    original = count(made) + head + last_feed_forward + edge_degree + embedding
    assert original == pytest.approx(3.53e6, abs=5e3)
    assert count(made) + head == pytest.approx(3.41e6, abs=5e3)


def test_host_and_est_differ_in_the_update_alone():
    host, est = (dict(configured(n).named_parameters()) for n in ("qm9_equiformer", "qm9_est_ga"))
    others = [{n: p.shape for n, p in m.items() if ".update." not in n} for m in (host, est)]
    assert others[0] == others[1]


@pytest.mark.parametrize(("name", "millions"), [("qm9_est_ga", 4.34), ("qm9_est", 4.12)])
def test_configs_build_the_sizes_that_they_name(name, millions):
    assert count(configured(name)) == pytest.approx(millions * 1e6, abs=1e4)


def test_bases_by_name():
    gaussian = small()
    bessel = small(distance_basis="bessel", num_distance_basis=8)
    assert isinstance(gaussian.backbone.distance_basis, LearnableGaussianBasis)
    assert isinstance(bessel.backbone.distance_basis, BesselBasis)
    scalars = bessel.backbone(molecules())["edge_scalars"]
    distance = bessel.backbone.radius_graph(molecules()).distance
    expected = bessel.backbone.distance_basis(distance)
    torch.testing.assert_close(scalars, expected)
    assert scalars.shape[1] == 8


@pytest.mark.parametrize("basis", ["gaussian", "bessel"])
@pytest.mark.parametrize("nonlinear", [True, False], ids=["nonlinear", "linear"])
def test_rotations(basis, nonlinear):
    made = small(distance_basis=basis, message={"nonlinear": nonlinear})
    data, turned = molecules(), molecules()
    r = systems.rotation(3)
    turned.pos = turned.pos @ r.T
    (e, v), (e_turned, v_turned) = both(made, data), both(made, turned)
    torch.testing.assert_close(e_turned, e, atol=TOL[torch.float64], rtol=0)
    torch.testing.assert_close(v_turned, v @ r.T, atol=TOL[torch.float64], rtol=0)


@pytest.mark.parametrize("baseline", [True, False], ids=["feed-forward", "est"])
@pytest.mark.parametrize("nonlinear", [True, False], ids=["nonlinear", "linear"])
def test_every_parameter_receives_a_gradient(baseline, nonlinear):
    made = small(baseline, message={"nonlinear": nonlinear}, distance_basis="bessel").train()
    out = made(molecules())
    vectors = out["position_delta"]["position_delta"]
    weights = torch.linspace(0.5, 1.5, vectors.numel(), dtype=torch.float64)
    (out["energy"]["energy"].square().sum() + (weights * vectors.flatten()).sum()).backward()
    assert not [n for n, p in made.named_parameters() if p.grad is None]
    idle = [n for n, p in made.named_parameters() if not p.grad.any()]
    # A feed-forward does not mix degrees, so tensors of the last layer cannot reach vectors.
    tensors = [n for n in idle if n.startswith("backbone.blocks.1.attention.")]
    assert idle == tensors
    assert all(n.endswith("weights.2") for n in idle)
    assert bool(idle) == baseline


def test_without_tags_no_tag_is_read_or_refused():
    made = small()
    e, _ = both(made, molecules())
    tagged = molecules()
    tagged.tags = torch.full_like(tagged.tags, 7)
    assert torch.equal(both(made, tagged)[0], e)
    atoms = systems.water()
    atoms.set_tags(7)
    made.backbone.validate_atoms_data(atoms, "qm9")
    assert not any("tag" in name for name, _ in made.named_parameters())


@pytest.mark.parametrize("baseline", [True, False], ids=["feed-forward", "est"])
@pytest.mark.parametrize("target", ["alpha", "gap", "mu", "r2"])
def test_molecules_can_be_padded_and_captured_gradients_too(baseline, target):
    made = small(baseline).backbone
    head = MolecularPropertyHead(made, target, r2_spread=300.0).double()
    assert made.capturable
    assert head.capturable
    data = molecules()
    graph = made.radius_graph(data)
    size = PaddedSize.of(len(data.pos) + 9, graph.vec.shape[0] + 200, data.natoms.numel())
    padding = Padding(size, data.pos)
    batch = padding(data, graph)
    parameters = [*made.parameters(), *head.parameters()]

    def predict(of, length: int) -> tuple[torch.Tensor, ...]:
        out = head(of, made(of))["target"][:length]
        used = torch.autograd.grad(out.square().sum(), parameters, allow_unused=True)
        return out.detach(), *(g for g in used if g is not None)

    expected = predict(data, 2)
    # Devices are not asked for the elements.
    made.check_elements = lambda numbers: None
    with NoHostSync():
        found = predict(batch, 2)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_with_tags_nothing_is_captured():
    assert not small(use_tags=True).backbone.capturable
