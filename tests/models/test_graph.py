"""The radius graph against ASE's neighbour list, for every kind of periodicity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list

from est_ocp.models.graph import RadiusGraph, complete_cell, wrap_positions
from est_ocp.models.settings import GraphSettings
from tests.models import systems

CUTOFF = 4.5


def edges_of(atoms: list[Atoms], version: int = 2, **settings) -> list[np.ndarray]:
    """Sorted rows (source, target, x, y, z) of each system's edges, vectors rounded."""
    graph = RadiusGraph(
        GraphSettings(cutoff=CUTOFF, max_neighbors=500, radius_pbc_version=version, **settings)
    )(systems.collate(atoms))
    batch = np.repeat(np.arange(len(atoms)), [len(a) for a in atoms])
    start = np.cumsum([0] + [len(a) for a in atoms])[:-1]
    rows = []
    for i in range(len(atoms)):
        mine = batch[graph.edge_index[1].numpy()] == i
        index = graph.edge_index.numpy()[:, mine] - start[i]
        rows.append(canonical(index, graph.vec.numpy()[mine]))
        assert torch.allclose(graph.distance, graph.vec.norm(dim=1))
    return rows


def canonical(index: np.ndarray, vec: np.ndarray) -> np.ndarray:
    table = np.concatenate([index.T, np.round(vec, 6) + 0.0], axis=1)
    return table[np.lexsort(table.T[::-1])]


def reference(atoms: Atoms) -> np.ndarray:
    target, source, vec = neighbor_list("ijD", atoms, CUTOFF)
    return canonical(np.stack([source, target]), vec)


def skewed(seed: int, pbc: tuple[bool, bool, bool]) -> Atoms:
    """Random atoms, many of them outside a skewed cell."""
    rng = np.random.default_rng(seed)
    cell = np.diag([4.0, 5.0, 6.0]) + rng.normal(scale=0.8, size=(3, 3))
    return Atoms("H5", positions=rng.normal(scale=6.0, size=(5, 3)), cell=cell, pbc=pbc)


@pytest.mark.parametrize(
    "pbc", [(True,) * 3, (False,) * 3, (True, True, False), (False, True, False)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_matches_ase_for_atoms_outside_a_skewed_cell(pbc, seed):
    atoms = skewed(seed, pbc)
    np.testing.assert_allclose(edges_of([atoms])[0], reference(atoms), atol=2e-6)


@pytest.mark.parametrize("make", [systems.slab, systems.water, systems.crystal, systems.wire])
def test_matches_ase_for_named_systems(make):
    atoms = make()
    np.testing.assert_allclose(edges_of([atoms])[0], reference(atoms), atol=2e-6)


def test_mixed_batch_equals_single_systems():
    batch = [
        systems.slab(),
        systems.single_atom(),
        systems.water(),
        systems.wire(),
        systems.crystal(),
    ]
    for together, alone in zip(edges_of(batch), (edges_of([a])[0] for a in batch), strict=True):
        np.testing.assert_allclose(together, alone, atol=2e-6)


@pytest.mark.parametrize("atoms", [[systems.single_atom()], [systems.single_atom()] * 3])
def test_no_edges(atoms):
    assert all(len(rows) == 0 for rows in edges_of(atoms))


def test_ties_are_kept_unless_strict():
    atoms = [systems.crystal()]
    loose, strict = (
        RadiusGraph(GraphSettings(cutoff=3.0, max_neighbors=5, strict_max_neighbors=s))(
            systems.collate(atoms)
        )
        for s in (False, True)
    )
    assert loose.edge_index.shape[1] == 12  # all nearest neighbours of fcc are equally far
    assert strict.edge_index.shape[1] == 5


@pytest.mark.parametrize("strict", [True, False])
def test_without_ties_there_are_exactly_max_neighbors(strict):
    rng = np.random.default_rng(0)
    atoms = Atoms("H30", positions=rng.normal(scale=2.0, size=(30, 3)))
    settings = GraphSettings(cutoff=50.0, max_neighbors=6, strict_max_neighbors=strict)
    graph = RadiusGraph(settings)(systems.collate([atoms]))
    counts = torch.bincount(graph.edge_index[1])
    # Where two squared distances differ by less than 0.01 both are kept.
    assert counts.min() == 6
    assert (counts == 6).float().mean() > (0.99 if strict else 0.8)


def test_gradients_pass_through_wrapping():
    data = systems.collate([skewed(3, (True, True, True))])
    data.pos = data.pos.requires_grad_(True)
    graph = RadiusGraph(GraphSettings(cutoff=CUTOFF, max_neighbors=500))(data)
    (graph.distance**2).sum().backward()
    expected = torch.zeros_like(data.pos)
    source, target = graph.edge_index
    expected.index_add_(0, source, 2 * graph.vec.detach())
    expected.index_add_(0, target, -2 * graph.vec.detach())
    torch.testing.assert_close(data.pos.grad, expected)


@pytest.mark.parametrize("pbc", [[1, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 1, 1]])
def test_completed_axes_are_orthonormal_to_the_periodic_ones(pbc):
    pbc = torch.tensor([pbc], dtype=torch.bool)
    cell = torch.randn(1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    done = complete_cell(torch.where(pbc[..., None], cell, torch.zeros_like(cell)), pbc)
    free = ~pbc[0]
    assert torch.equal(done[0, pbc[0]], cell[0, pbc[0]])
    torch.testing.assert_close(done[0, free] @ done[0, free].T, torch.eye(int(free.sum())).double())
    overlap = done[0, free] @ done[0, pbc[0]].T
    assert overlap.numel() == 0 or overlap.abs().max() < 1e-12


def test_wrapping_moves_along_periodic_axes_only():
    cell = torch.eye(3, dtype=torch.float64)[None] * 2
    pbc = torch.tensor([[True, False, True]])
    pos = torch.tensor([[5.0, 5.0, -1.0]], dtype=torch.float64)
    wrapped = wrap_positions(pos, cell, pbc, torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(wrapped, torch.tensor([[1.0, 5.0, 1.0]], dtype=torch.float64))
