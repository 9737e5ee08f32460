"""The backbone's interface: construction, gradients, edge cases, precision."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.modules.normalization.normalizer import Normalizer

import est_ocp
from est_ocp.errors import ConfigError, DataError
from est_ocp.models import EquiformerV2EST
from tests.models import systems
from tests.models.small import BACKBONE, CONSERVATIVE, HEADS, merge, model, outputs

BASELINE = {
    "model": "est_ocp.models.EquiformerV2Baseline",
    "update": {"hidden_channels": 8, "rule": {"kind": "lebedev", "num_points": 50}},
}


def baseline(**kwargs):
    backbone = {k: v for k, v in BACKBONE.items() if k != "update"} | BASELINE
    from est_ocp.models import ESTHydraModel

    return ESTHydraModel(backbone=merge(backbone, kwargs), heads=HEADS).double().eval()


@pytest.mark.parametrize(
    "name",
    ["est_eqv2", "eqv2", "est_energy_head", "est_force_head", "est_conservative_head",
     "est_balance_head", "est_hydra"],
)  # fmt: skip
def test_short_names_are_registered_by_importing_the_package(name):
    assert est_ocp.__version__
    assert registry.get_model_class(name).__module__.startswith("est_ocp.models")


@pytest.mark.parametrize("make", [model, baseline])
def test_every_parameter_receives_a_gradient(make):
    made = make().train()
    out = made(systems.collate([systems.slab(), systems.water()]))
    weights = torch.linspace(0.5, 1.5, out["forces"]["forces"].numel(), dtype=torch.float64)
    loss = out["energy"]["energy"].square().sum()
    loss = loss + (weights.view(-1, 3) * out["forces"]["forces"]).sum()
    loss.backward()
    dead = [
        name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert not dead


def test_conservative_forces_are_the_numerical_gradient():
    made = model(conservative=True)
    atoms = systems.slab()
    _, f = outputs(made, systems.collate([atoms]))
    for atom, axis in ((0, 0), (7, 2), (13, 1)):
        energies = []
        for step in (1e-4, -1e-4):
            moved = atoms.copy()
            moved.positions[atom, axis] += step
            energies.append(outputs(made, systems.collate([moved]))[0])
        numerical = -(energies[0] - energies[1]) / 2e-4
        torch.testing.assert_close(f[atom, axis], numerical[0], atol=1e-7, rtol=1e-5)


def test_conservative_training_step_has_gradients_of_gradients():
    made = model(conservative=True).train()
    out = made(systems.collate([systems.slab()]))
    out["forces"]["forces"].square().sum().backward()
    assert made.backbone.blocks[0].attention.alpha_dot.grad.abs().max() > 0


def test_direct_head_on_conservative_backbone_is_refused():
    with pytest.raises(ConfigError, match="direct_forces"):
        model(heads=HEADS, conservative=True)


def test_activation_checkpointing_changes_nothing():
    data = systems.collate([systems.slab()])
    grads = []
    for flag in (False, True):
        made = model(activation_checkpointing=flag, alpha_drop=0.0, drop_path=0.0).train()
        e = made(data)["energy"]["energy"].sum()
        e.backward()
        grads.append([e.detach()] + [p.grad for p in made.backbone.blocks.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("atoms", [systems.single_atom(), systems.crystal()])
def test_single_atom_is_finite_with_finite_gradients(atoms):
    made = model().train()
    out = made(systems.collate([atoms]))
    (out["energy"]["energy"].sum() + out["forces"]["forces"].sum()).backward()
    assert torch.isfinite(out["energy"]["energy"]).all()
    assert torch.isfinite(out["forces"]["forces"]).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in made.parameters())


def test_evaluation_is_deterministic_and_training_is_not():
    data = systems.collate([systems.slab(), systems.slab("Pt")])
    made = model(alpha_drop=0.3, drop_path=0.3)
    first, second = outputs(made, data), outputs(made, data)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    made.train()
    torch.manual_seed(0)
    assert not torch.equal(outputs(made, data)[1], outputs(made, data)[1])


def test_bf16_autocast_stays_close():
    data = systems.collate([systems.slab()], torch.float32)
    made = model(torch.float32, channels=16)
    e, f = outputs(made, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        e16, f16 = outputs(made, data)
    assert f16.dtype == torch.float32
    assert (f16 - f).norm() < 0.03 * f.norm()
    assert (e16 - e).abs().max() < 0.03 * e.abs().max()


def test_deepcopy_and_state_dict_round_trip():
    made = model()
    twin = model(seed=1)
    twin.load_state_dict(copy.deepcopy(made).state_dict())
    data = systems.collate([systems.slab()])
    assert torch.equal(outputs(made, data)[0], outputs(twin, data)[0])


@pytest.mark.parametrize("z", [0, 95, -1])
def test_unknown_element_is_named(z):
    data = systems.collate([systems.water()])
    data.atomic_numbers = torch.tensor([8, 1, z])
    with pytest.raises(DataError, match=rf"\[{z}\]"):
        model()(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chanels": 8}, "did you mean 'channels'"),
        ({"graph": {"cut_off": 5.0}}, "model.backbone.graph; did you mean 'cutoff'"),
        ({"update": {"rule": {"knd": "design"}}}, "update.rule; did you mean 'kind'"),
        ({"message": {"activation_rule": {"kind": "lebedv"}}}, "lebedev"),
        ({"mmax": 3}, "mmax"),
        ({"graph": {"cutoff": -1.0}}, "cutoff must be positive"),
        ({"graph": {"max_neighbors": 1}}, "max_neighbors must be >= 2"),
        ({"graph": {"cutoff": "12"}}, "model.backbone.graph"),
    ],
)
def test_wrong_keys_and_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        model(**changes)


def test_weight_decay_spares_norms_embeddings_and_biases():
    made = model()
    spared = made.no_weight_decay()
    parameters = dict(made.named_parameters())
    assert spared <= set(parameters)
    for name in parameters:
        decayed = name not in spared
        if "norm" in name or "embedding" in name.split(".")[-2] or "bias" in name.split(".")[-1]:
            assert not decayed, name
        if name.endswith(("mlp.0.weight", "alpha_dot")):
            assert decayed, name


def test_balance_head_gives_the_gates_a_gradient():
    heads = HEADS | {"expert_balance": {"module": "est_ocp.models.BalanceHead"}}
    made = model(heads=heads).train()
    out = made(systems.collate([systems.slab(), systems.water()]))
    balance = out["expert_balance"]["expert_balance"]
    assert balance.shape == (2,)
    assert (balance > 0).all()
    balance.sum().backward()
    gates = [p for n, p in made.named_parameters() if ".gate." in n and n.endswith("weight")]
    assert gates
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in gates)


def test_structures_are_checked_before_prediction():
    backbone = EquiformerV2EST(**{k: v for k, v in BACKBONE.items() if k != "model"})
    atoms = systems.slab()
    backbone.validate_atoms_data(atoms, "oc20")
    atoms.positions[0, 0] = float("nan")
    with pytest.raises(DataError, match="positions are not finite"):
        backbone.validate_atoms_data(atoms, "oc20")


@pytest.mark.parametrize(
    ("changes", "rmsd", "message"),
    [
        ({"direct_forces": False}, 3.0, r"normalizer.rmsd to 2.0 \(it is 3.0\)"),
        ({"regress_forces": False}, 2.0, "regress_forces is false"),
    ],
)
def test_tasks_that_contradict_the_model_are_refused(changes, rmsd, message):
    def task(name: str, scale: float) -> SimpleNamespace:
        return SimpleNamespace(property=name, normalizer=Normalizer(mean=0.0, rmsd=scale))

    configuration = {k: v for k, v in BACKBONE.items() if k != "model"}
    backbone = EquiformerV2EST(**merge(configuration, changes))
    with pytest.raises(ConfigError, match=message):
        backbone.validate_tasks({"oc20": [task("energy", 2.0), task("forces", rmsd)]})
    EquiformerV2EST(**configuration).validate_tasks({"oc20": [task("energy", 2.0)]})


def test_balance_head_beside_conservative_forces():
    heads = CONSERVATIVE | {
        "expert_balance": {"module": "est_ocp.models.BalanceHead", "pass_through": True}
    }
    out = model(heads=heads, conservative=True)(systems.collate([systems.slab()]))
    assert out["expert_balance"]["expert_balance"].shape == (1,)
    assert out["forces"]["forces"].shape == (14, 3)


def test_conservative_energies_keep_no_graph_in_inference():
    with torch.no_grad():
        out = model(conservative=True)(systems.collate([systems.slab()]))
    assert not out["energy"]["energy"].requires_grad
    assert not out["forces"]["forces"].requires_grad
