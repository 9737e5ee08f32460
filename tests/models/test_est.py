"""The EST network's interface: construction, sizes, gradients, heads, edge cases."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from fairchem.core.common.registry import registry

from est_ocp.cli.parts import count_parts
from est_ocp.errors import ConfigError, DataError
from est_ocp.models import ESTNetwork
from tests.models import small, systems
from tests.models.small import HEADS, outputs
from tests.tolerances import BF16_RELATIVE, TOL

BACKBONE: dict[str, Any] = {
    "model": "est_ocp.models.ESTNetwork",
    "num_layers": 2,
    "channels": 8,
    "lmax_out": 2,
    "regress_forces": True,
    "graph": {"cutoff": 4.0},
    "num_distance_basis": 16,
    "edge_channels": 8,
    "message": {
        "hidden_channels": 8,
        "spherical_expert_channels": 8,
        "num_steerable_experts": 2,
        "steerable_expert_channels": 8,
        "radial_channels": [8],
    },
    "update": {
        "rule": {"kind": "lebedev", "num_points": 26},
        "spherical_expert_channels": 16,
        "num_steerable_experts": 2,
        "steerable_expert_channels": 8,
    },
}


#: Like :func:`tests.models.small.model`, of the EST network.
model = functools.partial(small.model, base=BACKBONE)


def slab(dtype: torch.dtype = torch.float64):
    return systems.collate([systems.slab()], dtype)


def test_short_name_is_registered():
    assert registry.get_model_class("est") is ESTNetwork


def test_output_has_what_heads_read():
    for lmax_out in (0, 1, 2):
        out = model(heads={"energy": HEADS["energy"]}, lmax_out=lmax_out).backbone(slab())
        num_edges = out["edge_index"].shape[1]
        assert out["node_embedding"].shape == (14, (lmax_out + 1) ** 2, 8)
        assert out["edge_sh"].shape == (num_edges, 9)
        assert out["edge_scalars"].shape == (num_edges, 16)
        assert out["envelope"].shape == (num_edges,)
        assert len(out["batch"]) == len(out["atomic_numbers"]) == 14


def test_every_parameter_belongs_to_a_named_part():
    made = model()
    parts = count_parts(made)
    assert sum(parts.values()) == sum(p.numel() for p in made.parameters())
    assert not any("other" in part for part in parts)


@pytest.mark.parametrize("conservative", [False, True])
def test_every_parameter_receives_a_gradient(conservative):
    made = model(conservative=conservative).train()
    energy, forces = (
        made(systems.collate([systems.slab(), systems.water()]))[key][key]
        for key in ("energy", "forces")
    )
    weights = torch.linspace(0.5, 1.5, forces.numel(), dtype=torch.float64)
    (energy.square().sum() + (weights * forces.flatten()).sum()).backward()
    missing = [n for n, p in made.named_parameters() if p.grad is None]
    assert not missing
    idle = {n for n, p in made.named_parameters() if not p.grad.any()}
    if conservative:
        assert all(n.startswith(("backbone.blocks.1.", "backbone.norm.affine")) for n in idle)
    else:
        head = "output_heads.forces.attention.message."
        of_scalars = ("spherical.bias_out", "steerable.bias_in", "steerable.bias_out")
        assert idle == {head + name for name in of_scalars}


@pytest.mark.parametrize("conservative", [False, True])
def test_forces_of_direct_heads_and_of_gradients(conservative):
    made = model(conservative=conservative)
    energy, forces = outputs(made, slab())
    assert energy.shape == (1,)
    assert forces.shape == (14, 3)
    assert forces.abs().min() > 1e-9
    if not conservative:
        return
    ends = []
    for step in (1e-4, -1e-4):
        moved = slab()
        moved.pos[3, 1] += step
        ends.append(outputs(made, moved)[0])
    numerical = -(ends[0] - ends[1]) / 2e-4
    torch.testing.assert_close(forces[3, 1], numerical[0], atol=1e-8, rtol=1e-5)


def test_vectors_need_degree_one_in_the_output():
    with pytest.raises(ConfigError, match=r"set model\.backbone\.lmax_out to 1 or more"):
        model(lmax_out=0)


@pytest.mark.parametrize("make", [systems.single_atom, systems.crystal])
def test_single_atom_is_finite_with_finite_gradients(make):
    made = model().train()
    out = made(systems.collate([make()]))
    (out["energy"]["energy"].sum() + out["forces"]["forces"].sum()).backward()
    assert torch.isfinite(out["energy"]["energy"]).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in made.parameters())


def test_bf16_autocast_stays_close():
    made = model(torch.float32)
    energy, forces = outputs(made, slab(torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        energy_low, forces_low = outputs(made, slab(torch.float32))
    assert energy_low.dtype == forces_low.dtype == torch.float32
    assert (forces_low - forces).norm() < BF16_RELATIVE * forces.norm()
    assert (energy_low - energy).abs().max() < BF16_RELATIVE * energy.abs().max()


def test_recomputing_layers_changes_nothing():
    gradients = []
    for flag in (False, True):
        made = model(activation_checkpointing=flag).train()
        made(slab())["energy"]["energy"].sum().backward()
        gradients.append([p.grad for p in made.backbone.blocks.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_in_training_only():
    made = model(drop_path=0.4, proj_drop=0.3)
    assert torch.equal(outputs(made, slab())[0], outputs(made, slab())[0])
    made.train()
    torch.manual_seed(0)
    assert not torch.equal(outputs(made, slab())[0], outputs(made, slab())[0])


def test_state_dict_round_trip(tmp_path):
    made, twin = model(), model(seed=1)
    energy = outputs(made, slab())[0]
    assert not torch.equal(outputs(twin, slab())[0], energy)
    torch.save(made.state_dict(), tmp_path / "state.pt")
    twin.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(outputs(twin, slab())[0], energy)
    assert torch.equal(outputs(copy.deepcopy(made), slab())[0], energy)


def test_balance_loss_counts_the_experts_of_messages_by_edge():
    """The mean over four gates, each the loss of one graph's nodes or edges alone."""
    heads = HEADS | {"expert_balance": {"module": "est_ocp.models.BalanceHead"}}
    made = model(heads=heads)
    batch = [systems.slab(), systems.water(), systems.single_atom()]
    losses = made(systems.collate(batch))["expert_balance"]["expert_balance"]
    alone = [made(systems.collate([a]))["expert_balance"]["expert_balance"] for a in batch]
    torch.testing.assert_close(losses, torch.cat(alone), atol=TOL[torch.float64], rtol=0)
    assert len(made.backbone(systems.collate(batch))["gates"].records) == 4
    assert (losses > 0).all()


def test_weight_decay_spares_norms_embeddings_bases_and_biases():
    made = model(distance_basis="bessel", num_distance_basis=8)
    spared = made.no_weight_decay()
    assert "backbone.distance_basis.frequencies" in spared
    assert "backbone.blocks.0.message.spherical_norm.weight" in spared
    assert "backbone.blocks.0.message.attention.query_norm.weight" in spared
    assert "backbone.blocks.0.message.source.bias" in spared
    assert "backbone.blocks.0.message.source.weight" not in spared
    assert "backbone.blocks.0.message.spherical.weight_in" not in spared


def test_foreign_elements_are_named():
    with pytest.raises(DataError, match=r"atomic numbers \[29\]"):
        model(max_num_elements=10)(slab())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chanels": 8}, "unknown key 'chanels' in model.backbone"),
        ({"lmax_out": 3}, "lmax_out must lie in 0..lmax"),
        ({"num_layers": 0}, "must be positive"),
        ({"avg_degree": 0.0}, "avg_degree must be positive"),
        ({"distance_basis": "besel"}, "choose one of gaussian, bessel"),
        ({"message": {"heads": 4}}, "model.backbone.message; did you mean 'num_heads'"),
        ({"message": {"radial_channels": []}}, "radial_channels"),
        ({"graph": {"cut_off": 5.0}}, "did you mean 'cutoff'"),
        ({"update": {"hidden": 8}}, "did you mean 'hidden_channels'"),
        ({"compile_layers": "yes"}, "compile_layers must be one of"),
    ],
)
def test_wrong_keys_and_values_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        model(**changes)
