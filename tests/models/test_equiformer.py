"""The Equiformer backbones' interface: construction, sizes, gradients, tags, edge cases."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from fairchem.core.common.registry import registry

from est_ocp.cli.config import instantiate, resolve
from est_ocp.cli.info import describe
from est_ocp.cli.parts import count_parts
from est_ocp.errors import ConfigError, DataError
from est_ocp.models import EquiformerBaseline, EquiformerEST
from tests.models import systems
from tests.models.small_equiformer import BACKBONE, WITH_VECTORS, both, energies, model
from tests.tolerances import BF16_RELATIVE
from tests.training.launch import CONFIGS

BACKBONES = pytest.mark.parametrize("baseline", [False, True], ids=["est", "feed-forward"])


def tagged(tag: int | None = None):
    """A slab's batch with OC20's tags, or one tag for all."""
    data = systems.collate([systems.slab()])
    if tag is not None:
        data.tags = torch.full_like(data.tags, tag)
    return data


def configured(name: str):
    """The model of an IS2RE config."""
    config = resolve(str(CONFIGS / "is2re" / f"{name}.yml"), [])
    return instantiate(config.runner.train_eval_unit.model, "the model")


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_short_names_are_registered():
    assert registry.get_model_class("est_equiformer") is EquiformerEST
    assert registry.get_model_class("equiformer") is EquiformerBaseline


def test_the_is2re_model_has_the_papers_size():
    made = configured("est_6layer")
    assert count(made) == pytest.approx(32.47e6, rel=0.01)
    parts = count_parts(made)
    assert sum(parts.values()) == count(made)
    assert not any("other" in part for part in parts)
    assert "32 points, exact to degree 7 (design-32), in SphericalTransform, 6 times" in describe(
        made
    )


def test_the_baseline_has_equiformers_size_but_for_what_never_learns():
    made = configured("equiformer_6layer")
    assert not any("other" in part for part in count_parts(made))
    last_feed_forward = 256 * 384 + 384 + 128 * 384
    edge_degree = 256 + 65 * 384 + 128 * 256 + 256 * 128
    embeddings = 2 * 256 - (90 - 84) * 256
    original = count(made) + last_feed_forward + edge_degree + embeddings
    assert original == pytest.approx(9.12e6, abs=5e3)


@BACKBONES
def test_output_has_what_heads_read(baseline):
    made = model(baseline=baseline, vectors=True)
    out = made.backbone(tagged())
    num_edges = out["edge_index"].shape[1]
    assert out["node_embedding"].shape == (14, 4, made.backbone.channels)
    assert out["edge_sh"].shape == (num_edges, 4)
    assert out["edge_scalars"].shape == (num_edges, 16)
    assert len(out["batch"]) == len(out["atomic_numbers"]) == 14
    scalars_only = model(baseline=baseline).backbone(tagged())
    assert scalars_only["node_embedding"].shape == (14, 1, 12)


@BACKBONES
def test_every_parameter_receives_a_gradient(baseline):
    made = model(baseline=baseline, vectors=True).train()
    out = made(systems.collate([systems.slab(), systems.water()]))
    vectors = out["position_delta"]["position_delta"]
    weights = torch.linspace(0.5, 1.5, vectors.numel(), dtype=torch.float64)
    loss = out["energy"]["energy"].square().sum() + (weights * vectors.flatten()).sum()
    loss.backward()
    assert not [n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("baseline", [False, True])
def test_without_vectors_only_the_last_layers_vectors_are_idle(baseline):
    """DistributedDataParallel needs a gradient on every parameter, be it zero."""
    made = model(baseline=baseline).train()
    made(systems.collate([systems.slab()]))["energy"]["energy"].sum().backward()
    missing = [n for n, p in made.named_parameters() if p.grad is None]
    assert not missing
    idle = [n for n, p in made.named_parameters() if not p.grad.any()]
    assert all(n.startswith("backbone.blocks.1.") for n in idle)


def test_positions_are_differentiable():
    made = model()
    data = tagged()
    data.pos.requires_grad_(True)
    (gradient,) = torch.autograd.grad(made(data)["energy"]["energy"].sum(), data.pos)
    step = torch.zeros_like(data.pos)
    step[3, 1] = 1e-5
    ends = []
    for sign in (1, -1):
        moved = tagged()
        moved.pos = moved.pos + sign * step
        ends.append(energies(made, moved))
    numerical = (ends[0] - ends[1])[0] / 2e-5
    torch.testing.assert_close(gradient[3, 1], numerical, atol=1e-8, rtol=1e-5)


def test_tags_matter_and_missing_ones_are_zero():
    made = model()
    with_tags, zero, one = (energies(made, tagged(tag)) for tag in (None, 0, 1))
    assert abs(with_tags - zero) > 1e-4
    assert abs(one - zero) > 1e-4
    data = tagged()
    del data.tags
    assert torch.equal(energies(made, data), zero)


@pytest.mark.parametrize("tag", [-1, 3])
def test_foreign_tags_are_named(tag):
    with pytest.raises(DataError, match=rf"tags \[{tag}\] are not OC20's"):
        model()(tagged(tag))
    backbone = EquiformerEST(**{k: v for k, v in BACKBONE.items() if k != "model"})
    atoms = systems.slab()
    backbone.validate_atoms_data(atoms, "oc20")
    atoms.set_tags(tag)
    with pytest.raises(DataError, match="ASE's surface builders number the layers"):
        backbone.validate_atoms_data(atoms, "oc20")


@pytest.mark.parametrize("atoms", [systems.single_atom(), systems.crystal()])
@BACKBONES
def test_single_atom_is_finite_with_finite_gradients(atoms, baseline):
    made = model(baseline=baseline, vectors=True).train()
    out = made(systems.collate([atoms]))
    (out["energy"]["energy"].sum() + out["position_delta"]["position_delta"].sum()).backward()
    assert torch.isfinite(out["energy"]["energy"]).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in made.parameters())


def test_activation_checkpointing_changes_nothing():
    gradients = []
    for flag in (False, True):
        made = model(activation_checkpointing=flag).train()
        made(tagged())["energy"]["energy"].sum().backward()
        gradients.append([p.grad for p in made.backbone.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@BACKBONES
def test_bf16_autocast_stays_close(baseline):
    data = systems.collate([systems.slab()], torch.float32)
    made = model(torch.float32, baseline=baseline, vectors=True)
    e, v = both(made, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        e16, v16 = both(made, data)
    assert e16.dtype == v16.dtype == torch.float32
    assert (v16 - v).norm() < BF16_RELATIVE * v.norm()
    assert (e16 - e).abs().max() < BF16_RELATIVE * e.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positions_may_have_another_precision_than_the_model(dtype):
    other = torch.float64 if dtype == torch.float32 else torch.float32
    made = model(dtype, vectors=True)
    same, mixed = (both(made, systems.collate([systems.slab()], kind)) for kind in (dtype, other))
    for mine, theirs in zip(mixed, same, strict=True):
        torch.testing.assert_close(mine.to(theirs.dtype), theirs, atol=1e-4, rtol=1e-4)


def test_dropout_in_training_only():
    data = tagged()
    made = model(alpha_drop=0.3, drop_path=0.3)
    assert torch.equal(energies(made, data), energies(made, data))
    made.train()
    torch.manual_seed(0)
    assert not torch.equal(energies(made, data), energies(made, data))


def test_state_dict_round_trip(tmp_path):
    made, twin = model(vectors=True), model(seed=1, vectors=True)
    data = tagged()
    assert not torch.equal(energies(twin, data), energies(made, data))
    torch.save(made.state_dict(), tmp_path / "state.pt")
    twin.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(energies(twin, data), energies(made, data))
    assert torch.equal(energies(copy.deepcopy(made), data), energies(made, data))


def test_weight_decay_spares_norms_embeddings_bases_and_biases():
    made = model(vectors=True)
    spared = made.no_weight_decay()
    for name, parameter in made.named_parameters():
        of_norm = "norm" in name or ("radial.net" in name and parameter.dim() == 1)
        free = of_norm or "distance_basis" in name or "_embedding.weight" in name
        assert (name in spared) == (free or "bias" in name.rpartition(".")[2]), name


def test_balance_head_finds_the_gates():
    heads = WITH_VECTORS | {"expert_balance": {"module": "est_ocp.models.BalanceHead"}}
    from est_ocp.models import ESTHydraModel

    made = ESTHydraModel(backbone=BACKBONE | {"lmax_out": 1}, heads=heads)
    out = made(systems.collate([systems.slab()], torch.float32))
    assert out["expert_balance"]["expert_balance"].shape == (1,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chanels": 8}, "unknown key 'chanels' in model.backbone"),
        ({"irrep": "8x0e"}, "did you mean 'irreps'"),
        ({"irreps": "8x1e"}, "must have scalars"),
        ({"irreps": "8x1o"}, "must be even"),
        ({"lmax_out": 2}, "must not exceed"),
        ({"message": {"heads": 4}}, "model.backbone.message; did you mean"),
        ({"message": {"radial_channels": []}}, "radial_channels"),
        ({"graph": {"cut_off": 5.0}}, "did you mean 'cutoff'"),
        ({"update": {"hidden": "8x0e"}}, "did you mean 'hidden_channels'"),
        ({"regress_forces": True}, "predict energies, not forces"),
        ({"num_layers": 0}, "must be positive"),
    ],
)
def test_wrong_keys_and_values_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        model(**changes)


def test_force_tasks_are_refused():
    backbone = EquiformerEST(**{k: v for k, v in BACKBONE.items() if k != "model"})
    backbone.validate_tasks({"oc20": [SimpleNamespace(property="energy")]})
    with pytest.raises(ConfigError, match="energies, not forces"):
        backbone.validate_tasks({"oc20": [SimpleNamespace(property="forces")]})


def test_defaults_are_equiformers_is2re_settings():
    """What the config spells out is what the class does without it."""
    from est_ocp.models import ESTHydraModel

    energy = {"energy": {"module": "est_ocp.models.EnergyHead"}}
    assert count(ESTHydraModel(backbone={"model": "equiformer"}, heads=energy)) == count(
        configured("equiformer_6layer")
    )
    backbone = EquiformerBaseline(graph={"cutoff": 6.0})
    assert backbone.graph_settings.max_neighbors == 500
