"""SchNet on the periodic graph: torch_geometric's own network, symmetry, batches, boundaries."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from ase.build import molecule
from torch_geometric.nn.models import SchNet

from est_ocp.cli.config import instantiate, resolve
from est_ocp.errors import ConfigError, DataError
from est_ocp.models import ESTHydraModel, SchNetBaseline
from tests.models import systems
from tests.tolerances import BATCH, TOL

BACKBONE = {
    "model": "est_schnet",
    "channels": 16,
    "filter_channels": 12,
    "num_layers": 3,
    "num_distance_basis": 20,
    "graph": {"cutoff": 4.5, "max_neighbors": 500},
}
HEADS = {"energy": {"module": "est_ocp.models.EnergyHead", "avg_num_nodes": 10.0}}


def model(seed: int = 0, **changes) -> ESTHydraModel:
    """A small model, float64, in evaluation mode."""
    torch.manual_seed(seed)
    return ESTHydraModel(backbone=BACKBONE | changes, heads=HEADS).double().eval()


def energies(made: ESTHydraModel, *atoms) -> torch.Tensor:
    """Energies [B], detached."""
    return made(systems.collate(list(atoms)))["energy"]["energy"].detach()


def test_features_are_those_of_torch_geometric():
    backbone = model().backbone
    data = systems.collate([systems.slab(), systems.water()])
    graph = backbone.radius_graph(data)
    theirs = SchNet(
        hidden_channels=16,
        num_filters=12,
        num_interactions=3,
        num_gaussians=20,
        cutoff=4.5,
        interaction_graph=lambda pos, batch: (graph.edge_index, graph.distance),
    ).double()
    with torch.no_grad():
        theirs.embedding.weight[:90] = backbone.atom_embedding.weight
    # Theirs has two names for each network of a filter.
    missing, unexpected = theirs.interactions.load_state_dict(
        backbone.blocks.state_dict(), strict=False
    )
    assert all(".mlp." in name for name in missing)
    assert not unexpected
    seen = {}
    theirs.lin1.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    theirs(data.atomic_numbers.long(), data.pos, data.batch)
    ours = backbone(data)["node_embedding"]
    assert ours.shape == (data.num_nodes, 1, 16)
    # Their Gaussians' centres are rounded to float32.
    torch.testing.assert_close(ours[:, 0], seen["x"], atol=1e-5, rtol=1e-5)
    assert ours.std() > 0.1


def test_every_parameter_has_one_name_and_earlier_second_names_load():
    first, second = model(seed=0), model(seed=1)
    state = first.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    again = {n.replace(".conv.nn.", ".mlp."): t for n, t in state.items() if ".conv.nn." in n}
    assert again
    second.load_state_dict(state | again)
    assert torch.equal(energies(first, systems.slab()), energies(second, systems.slab()))


def test_energies_do_not_change_under_rotation_and_translation():
    made, atoms = model(), systems.slab()
    moved = systems.rotated(atoms, systems.rotation())
    moved.translate([3.0, -5.0, 11.0])
    assert (energies(made, atoms) - energies(made, moved)).abs() < TOL[torch.float64]


def test_a_batch_equals_its_systems_one_by_one():
    made = model()
    mixed = [systems.slab(), systems.water(), systems.slab("Pt", seed=1), systems.single_atom()]
    alone = torch.cat([energies(made, atoms) for atoms in mixed])
    assert (energies(made, *mixed) - alone).abs().max() < BATCH[torch.float64]
    assert alone.unique().numel() == len(mixed)


def test_a_periodic_box_larger_than_the_cutoff_is_a_molecule():
    made = model()
    boxed = molecule("CH3OH", vacuum=6.0, pbc=True)
    small = molecule("CH3OH", vacuum=1.0, pbc=True)
    free = energies(made, molecule("CH3OH"))
    assert (energies(made, boxed) - free).abs() < TOL[torch.float64]
    assert (energies(made, small) - free).abs() > 1e-4


def test_every_parameter_receives_a_gradient():
    made = model().train()
    made(systems.collate([systems.slab()]))["energy"]["energy"].sum().backward()
    dead = [n for n, p in made.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead


def test_unknown_keys_and_elements_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'channels'"):
        model(chanels=8)
    with pytest.raises(DataError, match="78"):
        energies(model(max_num_elements=30), systems.slab("Pt"))


def test_inference_settings_do_not_reach_for_checkpointing():
    def settings(flag):
        return SimpleNamespace(activation_checkpointing=flag, external_graph_gen=None)

    assert SchNetBaseline.build_inference_settings(settings(False)) == {}
    with pytest.raises(ConfigError, match="no activation checkpointing"):
        SchNetBaseline.build_inference_settings(settings(True))


def test_the_shipped_config_builds_the_published_size(tmp_path):
    config = tmp_path / "schnet.yml"
    config.write_text(
        "hydra: {searchpath: [pkg://est_ocp.configs]}\n"
        "defaults: [train_s2ef, override model: schnet_is2re, _self_]\n"
    )
    made = instantiate(resolve(config).runner.train_eval_unit.model, "the model")
    backbone = made.backbone
    assert backbone.channels == 384
    assert len(backbone.blocks) == 4
    assert backbone.graph_settings.cutoff == 6.0
    assert made.output_heads["energy"].node_energy.avg_num_nodes == pytest.approx(77.81317)
