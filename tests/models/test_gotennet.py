"""GotenNet backbones: interface, symmetries, cutoff, gradients, refusals."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from fairchem.core.common.registry import registry
from torch._dynamo.utils import counters

from est_ocp.cli.parts import count_parts
from est_ocp.errors import ConfigError
from est_ocp.models import GotenNetBaseline, GotenNetEST, layer_call
from est_ocp.models.layer_call import LayerCall
from tests.models import systems
from tests.models.small_gotennet import ENERGY, energies, features, model
from tests.nn.rotations import rotate
from tests.tolerances import BATCH, BF16_RELATIVE, TOL

#: Relative change of the features under rotation with the EST update's 110 points.
ROTATION = 1e-4

MAKERS = [systems.slab, systems.water, systems.wire]
BACKBONES = pytest.mark.parametrize("baseline", [False, True], ids=["est", "eqff"])


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def change(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))


def pair(distance: float) -> Atoms:
    return Atoms("CO", positions=[[0.1, 0.2, 0.3], [0.1, 0.2 + distance, 0.3]])


def test_short_names_are_registered():
    assert registry.get_model_class("est_gotennet") is GotenNetEST
    assert registry.get_model_class("gotennet") is GotenNetBaseline


def test_defaults_are_the_published_settings():
    """The published class has 7,646,464 parameters with these settings and 100 elements."""
    baseline = GotenNetBaseline(max_num_elements=100)
    assert count(baseline) == 7_646_464
    assert len(baseline.blocks) == 4
    assert baseline.graph_settings.cutoff == 5.0
    update = GotenNetEST(num_layers=1).blocks[0].update
    assert len(update.steerable) == 1
    assert update.spherical.mixture.num_spherical_experts == 1
    assert update.spherical.transform.num_points == 64


@pytest.mark.parametrize("cls", [GotenNetBaseline, GotenNetEST])
def test_models_of_the_published_width_rotate(cls):
    """Benzene with 4 layers, 256 channels and, with EST, 64 points."""
    torch.manual_seed(0)
    backbone = cls(lmax_out=2).double().eval()
    atoms, r = molecule("C6H6"), systems.rotation(1)
    atoms.rattle(0.1, seed=0)
    with torch.no_grad():
        x, turned = (
            backbone(systems.collate([a]))["node_embedding"]
            for a in (atoms, systems.rotated(atoms, r))
        )
    error = ((turned - rotate(x, r, 2)).norm() / x.norm()).item()
    print(f"\n{cls.__name__}: {error:.1e}")
    assert error < (TOL[torch.float64] if cls is GotenNetBaseline else 2e-3)


@BACKBONES
def test_parameters_are_told_apart(baseline):
    parts = count_parts(model(baseline=baseline))
    assert not any("other" in part for part in parts), parts
    expert = "feed-forward" if baseline else "spherical experts"
    assert parts[f"block 0: {expert}"] > 0


@pytest.mark.parametrize("lmax_out", [0, 1, 2])
@BACKBONES
def test_output_has_what_heads_read(baseline, lmax_out):
    made = model(baseline=baseline, lmax_out=lmax_out)
    out = made.backbone(systems.collate([systems.water(), systems.slab()]))
    assert out["node_embedding"].shape == (17, (lmax_out + 1) ** 2, 8)
    assert (made.backbone.channels, made.backbone.lmax_out) == (8, lmax_out)
    source, target = out["edge_index"]
    assert not (source == target)[(source < 3) & (target < 3)].any()
    assert len(out["batch"]) == len(out["atomic_numbers"]) == 17


@pytest.mark.parametrize("make", MAKERS)
@BACKBONES
def test_rotation_of_positions_and_cell(make, baseline):
    made = model(baseline=baseline)
    tolerance = TOL[torch.float64] if baseline else ROTATION
    r = systems.rotation(1)
    x = features(made, systems.collate([make()]))
    turned = features(made, systems.collate([systems.rotated(make(), r)]))
    assert change(turned, rotate(x, r, 2)) < tolerance


def test_est_updates_rotation_error_falls_with_the_degree_of_the_points():
    r = systems.rotation(2)
    atoms, errors = systems.slab(), []
    for points in (14, 26, 50):
        made = model(update={"rule": {"kind": "lebedev", "num_points": points}})
        x = features(made, systems.collate([atoms]))
        turned = features(made, systems.collate([systems.rotated(atoms, r)]))
        errors.append(change(turned, rotate(x, r, 2)))
    assert 0.2 > errors[0] > 2 * errors[1] > 4 * errors[2]


@BACKBONES
def test_translation_lattice_translation_and_permutation(baseline):
    made = model(baseline=baseline)
    atoms = systems.slab()
    x = features(made, systems.collate([atoms]))
    moved = atoms.copy()
    moved.positions += [0.3, -7.1, 2.2]
    moved.positions[3] += 2 * moved.cell[0] - moved.cell[1]
    order = np.random.default_rng(0).permutation(len(atoms))
    for changed, expected in ((moved, x), (atoms[order], x[order])):
        other = features(made, systems.collate([changed]))
        torch.testing.assert_close(other, expected, atol=TOL[torch.float64], rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@BACKBONES
def test_batch_equals_single_systems(dtype, baseline):
    made = model(dtype, baseline=baseline)
    batch = [make() for make in MAKERS] + [systems.single_atom(), systems.slab("Pt", seed=3)]
    x = features(made, systems.collate(batch, dtype))
    alone = torch.cat([features(made, systems.collate([a], dtype)) for a in batch])
    torch.testing.assert_close(x, alone, atol=BATCH[dtype], rtol=BATCH[dtype])


@BACKBONES
def test_large_box_equals_no_cell(baseline):
    made = model(baseline=baseline)
    water = systems.water()
    boxed = water.copy()
    boxed.set_cell([30, 30, 30])
    boxed.center()
    boxed.set_pbc(True)
    e, e_box = (energies(made, systems.collate([a])) for a in (water, boxed))
    torch.testing.assert_close(e_box, e, atol=TOL[torch.float64], rtol=0)


@pytest.mark.parametrize("atoms", [systems.single_atom(), systems.crystal(), pair(20.0)])
@pytest.mark.parametrize("self_edges", [True, False])
@BACKBONES
def test_lone_atoms_and_crystals_are_finite(atoms, self_edges, baseline):
    made = model(baseline=baseline, self_edges=self_edges).train()
    data = systems.collate([atoms])
    energy = made(data)["energy"]["energy"].sum()
    energy.backward()
    assert torch.isfinite(energy)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in made.parameters())


def test_atoms_out_of_reach_of_each_other_are_independent():
    made = model()
    far = features(made, systems.collate([pair(20.0)]))
    alone = [features(made, systems.collate([pair(20.0)[[i]]])) for i in (0, 1)]
    torch.testing.assert_close(far, torch.cat(alone), atol=TOL[torch.float64], rtol=0)


def test_self_edges_join_the_attention():
    with_self, without = (
        energies(model(baseline=True, self_edges=flag), systems.collate([systems.water()]))
        for flag in (True, False)
    )
    assert abs(with_self - without) > 1e-6


@BACKBONES
def test_neighbours_fade_in_at_the_cutoff(baseline):
    """With the envelope there is no jump, and no kink; without, as published, there is a jump."""
    jumps = {}
    for envelope in (True, False):
        made = model(baseline=baseline, graph={"envelope": envelope})
        randomise_biases(made)
        inside, outside = (
            features(made, systems.collate([pair(4.0 + step)])) for step in (-1e-4, 1e-4)
        )
        jumps[envelope] = change(inside, outside)
    assert jumps[True] < 1e-5
    assert jumps[False] > 1e-3


def randomise_biases(made: torch.nn.Module) -> None:
    """Zero biases hide terms."""
    torch.manual_seed(1)
    for name, parameter in made.backbone.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.3)


@BACKBONES
def test_every_parameter_receives_a_gradient(baseline):
    made = model(baseline=baseline).train()
    data = systems.collate([systems.slab(), systems.water()])
    made.backbone(data)["node_embedding"].square().sum().backward()
    assert not [
        n for n, p in made.backbone.named_parameters() if p.grad is None or not p.grad.any()
    ]


@BACKBONES
def test_scalar_output_leaves_no_parameter_without_gradient(baseline):
    """DistributedDataParallel needs one on every parameter, be it zero."""
    made = model(baseline=baseline, lmax_out=0).train()
    made(systems.collate([systems.slab()]))["energy"]["energy"].sum().backward()
    assert not [n for n, p in made.named_parameters() if p.grad is None]


@BACKBONES
def test_conservative_forces_are_derivatives_and_can_be_trained(baseline):
    made = model(baseline=baseline, conservative=True).train()
    atoms = systems.slab()
    out = made(systems.collate([atoms]))
    forces = out["forces"]["forces"]
    ends = []
    for step in (1e-4, -1e-4):
        moved = atoms.copy()
        moved.positions[-1, 2] += step
        ends.append(energies(made, systems.collate([moved])))
    numerical = -(ends[0] - ends[1])[0] / 2e-4
    torch.testing.assert_close(forces[-1, 2].detach(), numerical, atol=1e-7, rtol=1e-5)
    forces.square().sum().backward()
    grads = [p.grad for n, p in made.named_parameters() if "attention.edge_linear.weight" in n]
    assert len(grads) == 2
    assert all(g.any() and torch.isfinite(g).all() for g in grads)


@BACKBONES
def test_activation_checkpointing_changes_nothing(baseline):
    gradients = []
    for flag in (False, True):
        made = model(baseline=baseline, activation_checkpointing=flag).train()
        made(systems.collate([systems.slab()]))["energy"]["energy"].sum().backward()
        gradients.append([p.grad for p in made.backbone.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@BACKBONES
def test_bf16_autocast_stays_close(baseline):
    data = systems.collate([systems.slab()], torch.float32)
    made = model(torch.float32, baseline=baseline)
    x = features(made, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x16 = features(made, data)
    assert x16.dtype == torch.float32
    assert (x16 - x).norm() < BF16_RELATIVE * x.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positions_may_have_another_precision_than_the_model(dtype):
    other = torch.float64 if dtype == torch.float32 else torch.float32
    made = model(dtype)
    same, mixed = (features(made, systems.collate([systems.slab()], d)) for d in (dtype, other))
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed, same, atol=1e-4, rtol=1e-4)


def test_dropout_in_training_only():
    data = systems.collate([systems.slab()])
    made = model(alpha_drop=0.3)
    assert torch.equal(energies(made, data), energies(made, data))
    made.train()
    torch.manual_seed(0)
    assert not torch.equal(energies(made, data), energies(made, data))


@BACKBONES
def test_layers_compile_without_breaks_and_give_the_same(monkeypatch, baseline):
    """First features, layers, and the last layer, one graph each for all sizes."""
    made = model(baseline=baseline, num_layers=3).train()
    batches = [systems.collate([systems.slab(seed=i) for i in range(n)]) for n in (2, 3)]
    plain = [gradients(made, batch) for batch in batches]
    torch._dynamo.reset()
    compiled = torch.compile(layer_call._call, dynamic=True, fullgraph=True, backend="eager")
    monkeypatch.setattr(layer_call, "_compiled", compiled)
    monkeypatch.setattr(LayerCall, "_wanted", lambda self, device: self.allowed)
    before = counters["stats"]["unique_graphs"]
    for batch, expected in zip(batches, plain, strict=True):
        for mine, theirs in zip(gradients(made, batch), expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=TOL[theirs.dtype], rtol=1e-9)
    assert counters["stats"]["unique_graphs"] - before == 3


def gradients(made: torch.nn.Module, data) -> list[torch.Tensor]:
    made(data)["energy"]["energy"].square().sum().backward()
    found = [p.grad.clone() for p in made.parameters()]
    made.zero_grad()
    return found


def test_weight_decay_spares_norms_embeddings_and_biases():
    made = model()
    spared = made.no_weight_decay()
    assert "backbone.node_features.atom_embedding.weight" in spared
    for name, parameter in made.backbone.named_parameters():
        assert (f"backbone.{name}" in spared) == (
            "bias" in name
            or "norm" in name
            or "embedding" in name
            or (name.startswith("node_features.mlp") and parameter.dim() == 1)
        ), name


def test_balance_head_finds_the_gates():
    heads = ENERGY | {"expert_balance": {"module": "est_ocp.models.BalanceHead"}}
    made = model(torch.float32, heads=heads)
    out = made(systems.collate([systems.slab()], torch.float32))
    assert out["expert_balance"]["expert_balance"].shape == (1,)


def test_state_dict_round_trip():
    made, twin = model(), model(seed=1)
    data = systems.collate([systems.slab()])
    assert not torch.equal(energies(twin, data), energies(made, data))
    twin.load_state_dict(copy.deepcopy(made.state_dict()))
    assert torch.equal(energies(twin, data), energies(made, data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chanels": 8}, "unknown key 'chanels' in model.backbone"),
        ({"channels": 7}, "7 channels do not divide into 2 heads"),
        ({"num_layers": 0}, "num_layers must be positive"),
        ({"lmax_out": 3}, r"lmax_out must lie in 0..lmax=2"),
        ({"lmax": 0, "lmax_out": 0}, "degree 1 or more"),
        ({"graph": {"cut_off": 5.0}}, "did you mean 'cutoff'"),
        ({"update": {"points": 8}}, "unknown key 'points' in model.backbone.update"),
        ({"num_distance_basis": 1}, "num_basis >= 2"),
        ({"compile_layers": "sometimes"}, "compile_layers must be one of"),
    ],
)
def test_wrong_keys_and_values_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        model(**changes)


def test_direct_force_head_is_refused():
    heads = {"forces": {"module": "est_ocp.models.ForceHead"}}
    for make in (partial(model, heads=heads), partial(model, heads=heads, baseline=True)):
        with pytest.raises(ConfigError, match="ConservativeHead"):
            make()
