"""fairchem's EScAIP and eSCN-MD on our graph, with forces: parity, symmetry, boundaries."""

from __future__ import annotations

import pytest
import torch
from fairchem.core.models.escaip.EScAIP import EScAIPBackbone

from est_ocp.errors import ConfigError, DataError
from est_ocp.models import EScAIPBaseline, ESCNMDBaseline, ESTHydraModel
from tests.models.systems import collate, rotated, rotation, single_atom, slab, water

#: Sums in another order, float32.
SINGLE = 2e-5
SIZES = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "frequencies": [3, 2, 2, 1],
    "atom_channels": 8,
    "direction_channels": 8,
    "edge_channels": 8,
    "num_distance_basis": 12,
}
ENERGY = {"module": "est_ocp.models.EnergyHead", "avg_num_nodes": 10.0}
PEERS = {
    "est_ocp.models.EScAIPBaseline": (
        SIZES,
        "fairchem.core.models.escaip.EScAIP.EScAIPDirectForceHead",
    ),
    "est_ocp.models.ESCNMDBaseline": (
        {
            "sphere_channels": 8, "hidden_channels": 6, "edge_channels": 6, "num_layers": 2,
            "num_distance_basis": 8, "ff_type": "spectral", "regress_forces": True,
        },
        "fairchem.core.models.uma.escn_md.Linear_Force_Head",
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", PEERS)


def make(name: str) -> ESTHydraModel:
    """A small model with both heads, float32, in evaluation mode."""
    torch.manual_seed(0)
    sizes, force_head = PEERS[name]
    graph = {"cutoff": 4.5, "max_neighbors": 60}
    return ESTHydraModel(
        backbone={"model": name, "graph": graph, **sizes},
        heads={"energy": ENERGY, "forces": {"module": force_head}},
    ).eval()


def test_escaip_on_our_graph_is_fairchems():
    """Where no rank decides, both searches find and weigh the same neighbours."""
    torch.manual_seed(0)
    ours = EScAIPBaseline(graph={"cutoff": 4.0, "max_neighbors": 400}, **SIZES).eval()
    cfg = ours.gnn_cfg
    theirs = EScAIPBackbone(
        regress_forces=True, direct_forces=True, hidden_size=16, num_layers=2, use_compile=False,
        use_padding=False, use_pbc=True, max_num_elements=90, max_atoms=1, max_batch_size=1,
        max_radius=4.0, knn_k=401, knn_soft=False, knn_sigmoid_scale=0.2, knn_lse_scale=0.1,
        knn_use_low_mem=False, knn_pad_size=401, atten_name="math", atten_num_heads=2,
        atom_embedding_size=8, node_direction_embedding_size=8, edge_distance_expansion_size=12,
        edge_distance_embedding_size=8, freequency_list=cfg.freequency_list,
    ).eval()  # fmt: skip
    missing = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert missing.missing_keys == []
    with torch.no_grad():
        mine = ours(collate([slab(), slab("Pt", seed=3)], torch.float32))
        other = theirs(collate([slab(), slab("Pt", seed=3)], torch.float32))
    torch.testing.assert_close(
        mine["node_embedding"][:, 0], other["node_features"], atol=SINGLE, rtol=SINGLE
    )
    assert mine["node_features"].std() > 100 * SINGLE


@EVERY
def test_energies_are_invariant_and_structures_apart(name):
    model = make(name)
    turned = rotated(slab(seed=1), rotation(1))
    with torch.no_grad():
        alone = model(collate([slab(seed=1)], torch.float32))
        batch = model(collate([turned, water(), single_atom()], torch.float32))
    energies = batch["energy"]["energy"]
    torch.testing.assert_close(energies[:1], alone["energy"]["energy"], atol=SINGLE, rtol=SINGLE)
    assert batch["forces"]["forces"].shape == (len(turned) + 4, 3)
    assert torch.isfinite(batch["forces"]["forces"]).all()
    assert energies.std() > 100 * SINGLE


@EVERY
def test_losses_of_energy_and_forces_reach_the_layers(name):
    model = make(name).train()
    out = model(collate([slab(), water()], torch.float32))
    (out["energy"]["energy"].square().sum() + out["forces"]["forces"].square().sum()).backward()
    reached = [p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()]
    # Readouts of edges from the last layer alone have none in some models.
    assert sum(reached) > 0.8 * len(reached)


def test_forces_of_escn_md_turn_with_the_structure():
    model, r = make("est_ocp.models.ESCNMDBaseline"), rotation(2)
    with torch.no_grad():
        plain, turned = (
            model(collate([atoms], torch.float32))["forces"]["forces"]
            for atoms in (slab(), rotated(slab(), r))
        )
    torch.testing.assert_close(plain @ r.T.float(), turned, atol=SINGLE, rtol=1e-3)


def test_what_the_peers_cannot_do_is_refused():
    for cls in (EScAIPBaseline, ESCNMDBaseline):
        with pytest.raises(ConfigError, match="direct_forces"):
            cls(direct_forces=False)
        with pytest.raises(ConfigError, match="num_layerz"):
            cls(num_layerz=3)
    with pytest.raises(ConfigError, match="sum of frequencies"):
        EScAIPBaseline(hidden_size=32, num_heads=2, frequencies=[3])
    with pytest.raises(DataError, match="atomic numbers"):
        EScAIPBaseline(max_num_elements=5, **SIZES)(collate([water()], torch.float32))
