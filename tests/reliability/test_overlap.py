"""Atoms at the same place: found wherever they lie, and an error on every way into a model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairchem.core.datasets.atomic_data import AtomicData

from est_ocp.data import OC20LmdbDataset, TaskCollater, write_oc20_lmdb
from est_ocp.errors import DataError
from est_ocp.overlap import SAME_PLACE, find_overlap
from est_ocp.preflight.graph_checks import check_neighbors
from tests.data.conftest import make_record
from tests.data.test_loader import tasks
from tests.models import systems
from tests.reliability.calculators import calculator


def random_system(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions in and out of a skewed cell, and any periodicity."""
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(2.0, 9.0, 3)) + rng.normal(scale=0.9, size=(3, 3))
    return rng.normal(scale=8.0, size=(20, 3)), cell, rng.integers(0, 2, 3).astype(bool)


def closest(pos: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> float:
    """Smallest distance, by trying all images nearby."""
    inverse = np.linalg.inv(cell)
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1] if p else [0] for p in pbc]), -1).reshape(-1, 3)
    best = np.inf
    for i in range(len(pos)):
        for j in range(i):
            apart = pos[i] - pos[j]
            apart = apart - np.where(pbc, np.rint(apart @ inverse), 0.0) @ cell
            best = min(best, np.linalg.norm(apart + shifts @ cell, axis=1).min())
    return best


@pytest.mark.parametrize("seed", range(12))
def test_pairs_are_found_through_the_boundaries_and_nothing_else(seed):
    pos, cell, pbc = random_system(seed)
    assert closest(pos, cell, pbc) > SAME_PLACE
    assert find_overlap(pos, cell, pbc) is None
    rng = np.random.default_rng(seed)
    lattice = np.where(pbc, rng.integers(-3, 4, 3), 0) @ cell
    step = rng.normal(size=3)
    for length, found in ((0.0, True), (0.9 * SAME_PLACE, True), (1.1 * SAME_PLACE, False)):
        pos[11] = pos[4] + lattice + length * step / np.linalg.norm(step)
        overlap = find_overlap(pos, cell, pbc)
        assert (overlap is not None) == found
        if found:
            assert overlap[:2] == (4, 11)
            assert overlap[2] == pytest.approx(length, abs=1e-9)


def test_the_axes_that_are_not_periodic_need_no_cell():
    pos = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 0.001], [0.0, 1.0, 0.0]])
    wire = np.array([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert find_overlap(pos, wire, np.array([True, False, False]))[:2] == (0, 1)
    assert find_overlap(pos, wire, np.zeros(3, bool)) is None
    assert find_overlap(pos[:1], np.zeros((3, 3)), np.zeros(3, bool)) is None


@pytest.mark.parametrize("size", [200, 300])
def test_few_and_many_atoms(size):
    """All pairs and a tree; atoms that would be near if all axes had a period are not."""
    cell, pbc = np.diag([40.0, 40.0, 1.0]), np.array([True, True, False])
    pos = np.random.default_rng(0).uniform(size=(size, 3)) * 40.0
    pos[3] = pos[7] + [40.0, 0.0, 1.0]
    assert closest(pos[:20], cell, pbc) > SAME_PLACE
    assert find_overlap(pos, cell, pbc) is None
    pos[3] = pos[7] + [40.0, 0.002, 0.0]
    first, second, distance = find_overlap(pos, cell, pbc)
    assert (first, second) == (3, 7)
    assert distance == pytest.approx(0.002)


def test_a_record_is_refused_when_it_is_read(tmp_path):
    record = make_record(3)
    record["pos"][4] = record["pos"][1] + record["cell"][0]
    write_oc20_lmdb(tmp_path, [make_record(0), record])
    data = OC20LmdbDataset({"src": str(tmp_path)})
    assert len(data[0].pos) == 3
    with pytest.raises(DataError, match=r"^record 1 of .* has atoms 1 and 4 at the same place"):
        data[1]


def test_a_structure_of_ase_is_refused():
    atoms = systems.slab()
    atoms.positions[3] = atoms.positions[5] - atoms.cell[1]
    atoms.calc = calculator()
    with pytest.raises(DataError, match=r"^atoms 3 and 5 of the structure are at the same place"):
        atoms.get_potential_energy()


def test_the_preflight_sees_them_in_databases_of_other_formats():
    atoms = systems.water()
    atoms.positions[2] = atoms.positions[1]
    sample = SimpleNamespace(systems=[systems.collate([a]) for a in (systems.water(), atoms)])
    config = SimpleNamespace(backbone={"graph": {"cutoff": 4.0}})
    (pair,) = [c for c in check_neighbors(sample, config) if c.name == "closest pair"]
    assert pair.status.name == "FAIL"
    assert pair.found == "0.00 Å"


def test_positions_that_are_not_finite_in_databases_of_other_formats():
    """fairchem's own readers do not look; the collation of every loader does."""
    system = AtomicData.from_ase(systems.water(), task_name="oc20")
    system.dataset = "oc20"
    system.pos[1, 2] = torch.nan
    with pytest.raises(DataError, match="has positions that are not finite; remove or repair it"):
        TaskCollater(tasks())([system])
