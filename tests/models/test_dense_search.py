"""The search by all pairs against fairchem's, for every kind of periodicity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms

from est_ocp.models import dense_search as module
from est_ocp.models.graph import RadiusGraph
from est_ocp.models.settings import GraphSettings
from tests.models import systems
from tests.models.no_host_sync import WAITING, NoHostSync

TOLERANCE = 1e-9

EVERY_PBC = [(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)]


def rows(edges, vec) -> np.ndarray:
    """Edges and their vectors in one order, whatever the search's."""
    table = np.concatenate([edges.numpy().T, vec.detach().numpy()], axis=1)
    return table[np.lexsort(np.round(table.T[::-1], 5))]


def compare(atoms: list[Atoms], bare: bool = False, **settings) -> int:
    """Compare both searches and return the number of edges.

    With ``bare`` there are no cell vectors along axes that are not periodic.
    """
    graphs = RadiusGraph(GraphSettings(**settings))
    data = systems.collate(atoms)
    if bare:
        data.cell[~data.pbc] = 0.0
    expected = graphs(data)
    found = graphs.all_pairs(data, graphs._pbc(data))
    assert found.index.shape == expected.edge_index.shape
    np.testing.assert_allclose(
        rows(*found), rows(expected.edge_index, expected.vec), rtol=0, atol=TOLERANCE
    )
    assert (found.index[1].diff() >= 0).all()
    return found.index.shape[1]


def random_atoms(seed: int, pbc: tuple[bool, bool, bool], count: int = 12) -> Atoms:
    """Atoms in and around a skewed cell."""
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(3.0, 8.0, 3)) + rng.normal(scale=0.8, size=(3, 3))
    return Atoms(f"H{count}", positions=rng.normal(scale=5.0, size=(count, 3)), cell=cell, pbc=pbc)


@pytest.mark.parametrize("pbc", EVERY_PBC)
@pytest.mark.parametrize("max_neighbors", [6, 500])
def test_equals_fairchem_s_for_single_systems(pbc, max_neighbors):
    edges = [
        compare([random_atoms(seed, pbc)], seed % 2 == 1, cutoff=5.0, max_neighbors=max_neighbors)
        for seed in range(4)
    ]
    assert min(edges) > 0


@pytest.mark.parametrize("max_neighbors", [4, 20, 500])
def test_equals_fairchem_s_for_mixed_batches(max_neighbors):
    batch = [
        systems.slab(),
        systems.single_atom(),
        systems.water(),
        systems.wire(),
        systems.crystal(),
        *(random_atoms(seed, pbc, 3 + seed) for seed, pbc in enumerate(EVERY_PBC)),
    ]
    for bare in (False, True):
        assert compare(batch, bare, cutoff=4.5, max_neighbors=max_neighbors) > 0


def test_equals_fairchem_s_without_ties_where_the_number_is_strict():
    # Not periodic: an atom's two images in opposite directions would tie.
    batch = [random_atoms(seed, (False, False, False)) for seed in range(3)]
    edges = compare(batch, cutoff=50.0, max_neighbors=5, strict_max_neighbors=True)
    assert edges == 5 * 12 * 3


def test_ties_are_kept_unless_strict():
    data = systems.collate([systems.crystal()])
    for strict, count in ((False, 12), (True, 5)):
        graphs = RadiusGraph(
            GraphSettings(cutoff=3.0, max_neighbors=5, strict_max_neighbors=strict)
        )
        assert graphs.all_pairs(data, graphs._pbc(data)).index.shape[1] == count


@pytest.mark.parametrize("atoms", [[systems.single_atom()], [systems.single_atom()] * 3])
def test_no_edges(atoms):
    assert compare(atoms, cutoff=5.0) == 0


def test_gradients_pass_through(monkeypatch):
    graphs = RadiusGraph(GraphSettings(cutoff=4.5, max_neighbors=500))
    monkeypatch.setattr(module, "FEW_PAIRS", 1)
    gradients = []
    for search in (graphs, lambda data: graphs.all_pairs(data, graphs._pbc(data))):
        data = systems.collate([systems.slab(), systems.water()])
        data.pos = data.pos.requires_grad_(True)
        data.cell = data.cell.requires_grad_(True)
        search(data).vec.pow(3).sum().backward()
        gradients.append((data.pos.grad, data.cell.grad))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_float32_vectors_do_not_lose_the_image():
    data = systems.collate([systems.slab(size=(3, 3, 4))], torch.float32)
    exact = systems.collate([systems.slab(size=(3, 3, 4))])
    graphs = RadiusGraph(GraphSettings(cutoff=6.0, max_neighbors=500))
    found, expected = (graphs.all_pairs(d, graphs._pbc(d)) for d in (data, exact))
    assert found.vec.dtype == torch.float32
    torch.testing.assert_close(found.vec.double(), expected.vec, rtol=0, atol=1e-5)


def test_a_structure_of_too_many_pairs_is_left_to_fairchem(monkeypatch):
    graphs = RadiusGraph(GraphSettings())
    data = systems.collate([systems.slab(), systems.water()])
    plan = module._Plan(data.cell, graphs._pbc(data), data.natoms, graphs.settings.cutoff)
    monkeypatch.setattr(module, "MAX_PAIRS", plan.most_pairs - 1)
    assert graphs.all_pairs(data, graphs._pbc(data)) is None
    monkeypatch.setattr(module, "MAX_PAIRS", plan.most_pairs)
    assert graphs.all_pairs(data, graphs._pbc(data)) is not None


def test_batches_of_any_size_are_searched_in_groups(monkeypatch):
    batch = [
        systems.water(),
        systems.slab(),
        systems.crystal(),
        systems.slab(size=(3, 2, 3)),
        systems.water(),
        systems.single_atom(),
        systems.wire(),
    ]
    data = systems.collate(batch)
    pbc = RadiusGraph._pbc(data)
    plan = module._Plan(data.cell, pbc, data.natoms, 4.5)
    assert len(plan.groups) == 1
    for few in (1, 200):
        monkeypatch.setattr(module, "FEW_PAIRS", few)
        monkeypatch.setattr(module, "MAX_PAIRS", plan.most_pairs)
        groups = module._Plan(data.cell, pbc, data.natoms, 4.5).groups
        assert 1 < len(groups) < len(batch)
        assert sorted(np.concatenate(groups)) == list(range(len(batch)))
        assert compare(batch, cutoff=4.5, max_neighbors=6) > 0


@pytest.mark.parametrize("count", [1, 7, 300])
def test_groups_are_few_fit_into_memory_and_are_half_full(count):
    rng = np.random.default_rng(count)
    natoms, num_images = rng.integers(20, 226, count), 3 * rng.choice([3, 9, 25], count)
    groups = module._groups(natoms, num_images)
    assert sorted(np.concatenate(groups)) == list(range(count))
    pairs = natoms**2 * num_images
    assert len(groups) <= 8 + 4 * pairs.sum() / module.MAX_PAIRS
    for group in groups:
        padded = len(group) * natoms[group].max() ** 2 * num_images[group].max()
        assert padded <= module.MAX_PAIRS
        assert padded <= max(module.FEW_PAIRS, 2 * pairs[group].sum())


@pytest.mark.parametrize("few", [1, module.FEW_PAIRS])
@pytest.mark.parametrize("copies", [1, 4])
def test_waits_for_the_number_of_edges_alone_whatever_the_batch(copies, few, monkeypatch):
    monkeypatch.setattr(module, "FEW_PAIRS", few)
    graphs = RadiusGraph(GraphSettings())
    data = systems.collate([systems.slab(), systems.water()] * copies)
    names = tuple(name for name in WAITING if name != "nonzero")
    monkeypatch.setattr("tests.models.no_host_sync.WAITING", names)
    # The plan of the batch is copied from the host on purpose.
    monkeypatch.setattr("tests.models.no_host_sync.CONSTANT", "")
    with NoHostSync():
        assert graphs.all_pairs(data, graphs._pbc(data)) is not None


def test_other_versions_and_an_unwanted_search_stay_with_fairchem():
    assert RadiusGraph(GraphSettings()).dense
    assert not RadiusGraph(GraphSettings(), dense=False).dense
    assert not RadiusGraph(GraphSettings(radius_pbc_version=1)).dense
