"""Padded batches: same results, whatever the size, and nothing that waits for a device."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from est_ocp.models import ESTHydraModel
from est_ocp.models.graph import RadiusGraph
from est_ocp.models.padding import EDGES_PER_ATOM, PaddedBatch, PaddedSize, Padding
from est_ocp.models.settings import GraphSettings
from est_ocp.nn.edge_rotation import edge_order
from tests.models import systems
from tests.models.every_backbone import BACKBONES, GRAPH
from tests.models.no_host_sync import NoHostSync
from tests.models.small import model, outputs

TOLERANCE = 1e-12

BATCHES = {
    "slab": [systems.slab],
    "several": [systems.slab, systems.single_atom, systems.water, systems.wire, systems.crystal],
    "no edges": [systems.single_atom],
    "no edges at all": [systems.single_atom] * 7,
    "molecule": [systems.water],
}
CAPTURABLE = sorted(name for name, make in BACKBONES.items() if make().capturable)


def padded(data, graph, more: int = 0) -> tuple[Padding, PaddedBatch]:
    """A batch padded to its size, or to one with more atoms and edges."""
    size = PaddedSize.of(
        data.pos.shape[0] + more, graph.vec.shape[0] + 50 * more, data.natoms.numel()
    )
    padding = Padding(size, data.pos)
    return padding, padding(data, graph)


@pytest.fixture(scope="module")
def small() -> ESTHydraModel:
    made = model()
    made.backbone.check_elements = lambda numbers: None
    return made


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("more", [0, 9, 30])
def test_energies_and_forces_are_those_of_the_batch(small, name, more):
    data = systems.collate([make() for make in BATCHES[name]])
    energy, forces = outputs(small, data)
    padding, batch = padded(data, small.backbone.radius_graph(data), more)
    with torch.no_grad(), NoHostSync():
        out = padding.unpad(small(batch), len(data.pos), len(data.natoms))
    assert out["energy"]["energy"].shape == energy.shape
    assert out["forces"]["forces"].shape == forces.shape
    torch.testing.assert_close(out["energy"]["energy"], energy, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(out["forces"]["forces"], forces, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CAPTURABLE)
def test_backbones_that_can_be_captured_pad_and_do_not_wait(name):
    backbone = BACKBONES[name]().double()
    data = systems.collate([systems.slab(), systems.water(), systems.single_atom()])
    padding, batch = padded(data, backbone.radius_graph(data))
    with torch.no_grad():
        expected = backbone(data)["node_embedding"]
        # Devices are not asked for the elements.
        backbone.check_elements = lambda numbers: None
        with NoHostSync():
            found = backbone(batch)["node_embedding"]
    found = padding.unpad(found, len(data.pos), len(data.natoms))
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CAPTURABLE)
@pytest.mark.parametrize("batch", ["several", "no edges at all"])
def test_gradients_of_weights_do_not_see_the_filling(name, batch):
    """Nor are they spoilt by it; with several structures in the filling."""
    backbone = BACKBONES[name]().double()
    data = systems.collate([make() for make in BATCHES[batch]])
    graph = backbone.radius_graph(data)
    size = PaddedSize.coarse(len(data.pos) + 3, graph.vec.shape[0] + 100, len(data.natoms) + 2)
    found = []
    for given in (data, Padding(size, data.pos)(data, graph)):
        backbone.zero_grad(set_to_none=True)
        with NoHostSync() if given is not data else nullcontext():
            x = backbone(given)["node_embedding"][: len(data.pos)]
            (x.square() * torch.cos(torch.arange(x.numel()).reshape(x.shape))).sum().backward()
        backbone.check_elements = lambda numbers: None
        gradients = [p.grad for p in backbone.parameters()]
        found.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    assert torch.isfinite(found[0]).all()
    assert found[0].norm() > 0
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=TOLERANCE * found[0].norm().item())


@pytest.mark.parametrize("name", BATCHES)
def test_coarse_sizes_hold_batches_of_fewer_structures_too(name):
    data = systems.collate([make() for make in BATCHES[name]])
    graph = RadiusGraph(GraphSettings(**GRAPH))(data)
    total = (len(data.pos), graph.vec.shape[0], len(data.natoms))
    size = PaddedSize.coarse(*total)
    assert size.holds(*total)
    assert size.close_to(*total, 0.0)
    assert size.edges <= max(64, 1.07 * total[1] + 64)
    batch = Padding(size, data.pos)(data, graph)
    assert int(batch.natoms.min()) >= 1
    assert batch.natoms.shape == (size.graphs,)
    assert torch.equal(torch.bincount(batch.batch), batch.natoms)
    assert torch.equal(batch.batch[: len(data.pos)], data.batch)


def test_what_a_size_does_not_hold():
    size = PaddedSize(atoms=64, edges=1024, graphs=8, hubs=2)
    assert size.holds(57, 1024, 1)
    assert size.holds(62, 1024, 7)
    for atoms, edges, graphs in ((58, 1024, 1), (63, 1024, 7), (57, 1025, 1), (40, 900, 8)):
        assert not size.holds(atoms, edges, graphs)
    assert size.close_to(60, 1000, 3, 0.12)
    assert not size.close_to(60, 900, 3, 0.12)
    assert not size.close_to(30, 1000, 3, 0.12)


def test_which_backbones_can_be_captured():
    assert CAPTURABLE == ["eqv2", "est", "est_eqv2", "est_gotennet", "est_schnet", "gotennet"]


def test_sorting_the_edges_for_the_fused_kernels_does_not_wait():
    data = systems.collate([systems.slab(), systems.single_atom()])
    padding, batch = padded(data, RadiusGraph(GraphSettings(**GRAPH))(data))
    with NoHostSync():
        order = edge_order(batch.graph_edge_index, padding.size.atoms)
    assert torch.equal(order.offsets[:, -1], torch.full((2,), padding.size.edges))


@pytest.mark.parametrize("edges", [0, 1, 63, 64, 65, 1500, 1024, 20_000, 49_000])
@pytest.mark.parametrize("atoms", [1, 7, 8, 75, 500])
def test_sizes_are_close_and_hold_the_batch(atoms, edges):
    size = PaddedSize.of(atoms, edges, 3)
    assert size.graphs == 4
    assert size.edges % 64 == 0
    assert edges <= size.edges <= max(64, 1.07 * edges + 64)
    assert atoms + 1 <= atoms + size.hubs <= size.atoms < atoms + size.hubs + 8
    # The largest filling: one edge more than the size below.
    assert size.edges - edges <= size.hubs * EDGES_PER_ATOM


def test_the_filling_touches_no_atom_and_no_hub_gets_many_edges():
    data = systems.collate([systems.slab(size=(3, 3, 4)), systems.water()])
    graph = RadiusGraph(GraphSettings(cutoff=9.0, max_neighbors=500))(data)
    padding, batch = padded(data, graph)
    real = graph.vec.shape[0]
    index = batch.graph_edge_index
    assert torch.equal(index[:, :real], graph.edge_index)
    assert index[:, real:].min() >= padding.size.atoms - padding.size.hubs
    assert torch.bincount(index[1, real:]).max() <= EDGES_PER_ATOM
    assert (index[1].diff() >= 0).all()
    assert int(batch.natoms.sum()) == padding.size.atoms
    assert torch.equal(torch.bincount(batch.batch), batch.natoms)


def test_a_padded_batch_is_overwritten_by_the_next():
    graphs = RadiusGraph(GraphSettings(**GRAPH))
    first, second = (systems.collate([systems.slab(seed=seed)]) for seed in (0, 1))
    padding, batch = padded(first, graphs(first), more=3)
    addresses = [tensor.data_ptr() for tensor in batch.values()]
    for data in (second, systems.collate([systems.water()])):
        padding(data, graphs(data), out=batch)
        for name, tensor in padding(data, graphs(data)):
            assert torch.equal(batch[name], tensor), name
    assert addresses == [tensor.data_ptr() for tensor in batch.values()]


@pytest.mark.parametrize("name", CAPTURABLE)
def test_the_fillings_features_do_not_grow_with_its_edges(name):
    """As many edges at few atoms, all of one direction, as a size kept for smaller batches has."""
    backbone = BACKBONES[name]()
    data = systems.collate([systems.slab(), systems.water()], torch.float32)
    backbone = backbone.to(torch.float32)
    graph = backbone.radius_graph(data)
    atoms = len(data.pos)

    def largest(extra_edges: int) -> float:
        size = PaddedSize(atoms + 4, graph.vec.shape[0] + extra_edges, 3, 2)
        batch = Padding(size, data.pos)(data, graph)
        backbone.check_elements = lambda numbers: None
        features = backbone(batch)["node_embedding"][atoms:]
        return float(features.detach().abs().max())

    few, many = largest(64), largest(6400)
    assert many < 3.0 * max(few, 1.0)
