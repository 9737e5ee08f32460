"""The script's plumbing, labelled by ASE's EMT (no chemistry is tested)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from est_ocp.data import load_demo_frames
from est_ocp.data.frames import Frames

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_demo_set.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_demo_set", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    arguments = ["--frames-out", str(folder / "frames.npz"), "--labels", "emt", "--systems", "16"]
    arguments += ["--train-frames", "20", "--val-frames", "5", "--max-force", "50"]
    script.main([str(folder / "set.npz"), *arguments])
    return folder


def test_generated_frames(made):
    frames = Frames.load(made / "frames.npz")
    assert len(frames) == 16 * 8
    assert "EMT" in frames.source
    assert list(frames.kind[:8]) == [*(f"relax{n}" for n in (0, 1, 2, 4, 6, 9)), "rattle", "rattle"]
    offsets = frames.offsets
    for system in range(16):
        block = [frames.pos[offsets[f] : offsets[f + 1]] for f in range(8 * system, 8 * system + 8)]
        fixed = frames.fixed[offsets[8 * system] : offsets[8 * system + 1]]
        assert 0 < fixed.sum() < len(fixed)
        assert all(np.array_equal(pos[fixed], block[0][fixed]) for pos in block)
        assert np.abs(block[7] - block[5]).max() > 0.1
        tags = frames.tags[offsets[8 * system] : offsets[8 * system + 1]]
        assert set(tags) == {0, 1, 2}
        heights = [block[0][tags == tag, 2].mean() for tag in range(3)]
        assert heights == sorted(heights)
    energy = frames.energy.reshape(16, 8)
    assert (energy[:, 5] < energy[:, 0]).mean() > 0.9


def test_labels_are_the_calculators(made, script):
    """The first frame's forces and energy differences, calculated anew."""
    import ase
    from ase.calculators.emt import EMT

    frames = Frames.load(made / "frames.npz")
    energies = []
    for frame in range(2):
        record = list(frames.records())[frame]
        atoms = ase.Atoms(
            record["atomic_numbers"], record["pos"], cell=record["cell"], pbc=True, calculator=EMT()
        )
        energies.append(atoms.get_potential_energy())
        assert np.abs(atoms.get_forces() - record["forces"]).max() < 1e-3
    assert energies[1] - energies[0] == pytest.approx(frames.energy[1] - frames.energy[0], abs=1e-3)


def test_cut_keeps_systems_whole(made):
    cut, frames = load_demo_frames(made / "set.npz"), Frames.load(made / "frames.npz")
    assert 0 < len(cut) < len(frames)
    assert cut.natoms.max() <= 21
    train = cut.of_split("train")
    assert len(train) >= 15
    for split in ("val_id", "val_ood_ads"):
        assert set(cut.of_split(split).material) <= set(train.material)


def test_cut_from_a_frames_file(made, script, tmp_path):
    arguments = ["--from", str(made / "frames.npz"), "--train-frames", "20", "--val-frames", "5"]
    script.main([str(tmp_path / "set.npz"), *arguments, "--max-force", "50"])
    again, first = load_demo_frames(tmp_path / "set.npz"), load_demo_frames(made / "set.npz")
    assert np.array_equal(again.sid, first.sid)
    assert np.array_equal(again.energy, first.energy)


def test_alloys_and_references(script):
    rng = np.random.default_rng(0)
    slab = script.make_slab("Cu-Au", "fcc111", (3, 3, 3), rng)
    assert set(slab.symbols) == {"Cu", "Au"}
    assert slab.get_tags().tolist() == [0] * 9 + [1] * 18
    assert slab.constraints[0].index.tolist() == list(range(9))
    adsorbates, ood = script.load_adsorbates("ase")
    assert ood < set(adsorbates)
    assert all(len(atoms) <= script.LARGEST_ADSORBATE for atoms, _ in adsorbates.values())
