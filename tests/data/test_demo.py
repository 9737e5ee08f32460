"""The embedded set: its splits, its labels, and the folders made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.data import covalent_radii
from omegaconf import OmegaConf

from est_ocp.data import (
    SPLITS,
    NoisyNodes,
    OC20LmdbDataset,
    demo,
    load_demo_frames,
    write_demo_set,
)
from est_ocp.data.demo_splits import TEST_RATTLE, TEST_SID, TEST_SPLITS
from est_ocp.data.frames import FORCE_STEP, POSITION_STEP, Frames, pack, unpack
from est_ocp.errors import DataError


@pytest.fixture(scope="module")
def frames() -> Frames:
    return load_demo_frames()


@pytest.fixture(scope="module")
def few(frames) -> Frames:
    """A handful of systems of every split."""
    systems = [frames.sid[frames.split == split][:1] for split in SPLITS]
    return frames.select(np.isin(frames.sid, systems))


def test_splits_share_only_what_they_should(frames):
    parts = {split: frames.of_split(split) for split in SPLITS}
    train = parts["train"]
    assert 1000 <= len(train) <= 1400
    assert demo.EMBEDDED.stat().st_size < 600_000
    for split, part in parts.items():
        materials, adsorbates = set(part.material), set(part.adsorbate)
        if split == "train":
            continue
        assert 90 <= len(part) <= 110
        assert not set(part.sid) & set(train.sid)
        old_metals = split in ("val_id", "val_ood_ads")
        old_adsorbates = split in ("val_id", "val_ood_cat")
        assert bool(materials & set(train.material)) == old_metals
        assert bool(adsorbates & set(train.adsorbate)) == old_adsorbates
        assert (materials <= set(train.material)) == old_metals
        assert (adsorbates <= set(train.adsorbate)) == old_adsorbates


def test_frames_are_sound(frames):
    assert "CHGNet" in frames.source
    assert set(frames.kind) == {"relax0", "relax2", "relax6", "rattle"}
    assert frames.largest_force().max() <= 10.0
    assert np.array_equal(frames.fixed, frames.tags == 0)
    for record in list(frames.records())[::97]:
        pos, z = record["pos"], record["atomic_numbers"]
        distance = np.linalg.norm(pos[:, None] - pos[None], axis=-1) + 10 * np.eye(len(pos))
        touching = np.add.outer(covalent_radii[z], covalent_radii[z])
        assert (distance > 0.5 * touching).all()
        assert np.linalg.det(record["cell"]) > 100


def test_forces_point_downhill(frames):
    """Along a system's relaxation energies fall, and forces predict by how much."""
    offsets = frames.offsets
    predicted, found = [], []
    for a, b in zip(range(len(frames) - 1), range(1, len(frames)), strict=True):
        if frames.sid[a] != frames.sid[b] or (frames.kind[a], frames.kind[b]) != (
            "relax2",
            "relax6",
        ):
            continue
        moved = frames.pos[offsets[b] : offsets[b + 1]] - frames.pos[offsets[a] : offsets[a + 1]]
        mean = frames.forces[offsets[b] : offsets[b + 1]] + frames.forces[offsets[a] : offsets[b]]
        predicted.append(float((moved * mean).sum() / 2))
        found.append(float(frames.energy[a] - frames.energy[b]))
    assert len(found) > 200
    assert np.mean(np.array(found) > 0) > 0.95
    assert np.corrcoef(predicted, found)[0, 1] > 0.9


def test_pack_is_exact_to_its_steps(few):
    rng = np.random.default_rng(0)
    moved = Frames(**{**vars(few), "pos": few.pos + rng.random(few.pos.shape).astype("f4")})
    again = unpack(pack(moved))
    assert np.abs(again.pos - moved.pos).max() < POSITION_STEP
    assert np.abs(again.forces - moved.forces).max() < FORCE_STEP
    for name in ("z", "tags", "fixed", "natoms", "sid", "fid", "split", "kind", "adsorbate"):
        assert np.array_equal(getattr(again, name), getattr(moved, name))
    with pytest.raises(DataError, match="consecutive"):
        pack(Frames(**{**vars(few), "sid": np.arange(len(few)) % 2}))


def test_statistics(few):
    rows = few.statistics()
    assert list(rows) == list(SPLITS)
    part = few.of_split("val_id")
    free = part.forces[~part.fixed]
    assert rows["val_id"]["force_mae"] == pytest.approx(np.abs(free).mean())
    mean = few.energy[few.split == "train"].mean()
    assert rows["val_id"]["energy_mad"] == pytest.approx(np.abs(part.energy - mean).mean())


def test_not_a_frames_file(tmp_path):
    np.savez(tmp_path / "x.npz", a=1)
    with pytest.raises(DataError, match="not a frames file"):
        Frames.load(tmp_path / "x.npz")


def test_folders_hold_the_frames_and_are_made_once(tmp_path, few, monkeypatch):
    from est_ocp.data.frames import write_packed

    path = tmp_path / "few.npz"
    write_packed(path, few)
    folders = write_demo_set(tmp_path / "demo", path)
    names = [*SPLITS, *TEST_SPLITS]
    assert list(folders) == [*names, *(f"is2re/{name}" for name in names)]
    for split in SPLITS:
        folder = folders[split]
        part = few.of_split(split)
        data = OC20LmdbDataset({"src": str(folder)})
        assert len(data) == len(part)
        assert data._metadata["natoms"].tolist() == part.natoms.tolist()
        sample = data[len(data) - 1]
        assert sample.energy.item() == pytest.approx(part.energy[-1])
        assert np.abs(sample.forces.numpy() - part.forces[part.offsets[-2] :]).max() < 1e-6
        assert sample.sid == [f"{part.sid[-1]}_{part.fid[-1]}"]

    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*") if p.is_file()}
    write_demo_set(tmp_path / "demo", path)
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())
    (tmp_path / "demo" / "val_id" / "data.0000.lmdb").unlink()
    write_demo_set(tmp_path / "demo", path)
    assert len(OC20LmdbDataset({"src": str(tmp_path / "demo" / "val_id")})) > 0
    write_packed(path, few.select(few.kind != "rattle"))
    write_demo_set(tmp_path / "demo", path)
    assert len(OC20LmdbDataset({"src": str(folders["train"])})) < len(few.of_split("train"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_demo_set(tmp_path_factory.mktemp("demo"))


@pytest.mark.parametrize("split", SPLITS)
def test_is2re_records_are_the_ends_of_the_relaxations(frames, folders, split):
    assert [p.name for p in folders[f"is2re/{split}"].glob("*.lmdb")] == ["data.lmdb"]
    data = OC20LmdbDataset({"src": str(folders[f"is2re/{split}"]), "task": "is2re"})
    part = frames.of_split(split)
    starts = np.flatnonzero(part.kind == "relax0")
    assert len(data) == len(starts)
    for index in (0, len(data) - 1):
        sample, first = data[index], int(starts[index])
        own = np.flatnonzero(part.sid == part.sid[first])
        last = own[np.char.startswith(part.kind[own].astype(str), "relax")][-1]
        assert part.kind[last] in ("relax2", "relax6")
        atoms, end = (slice(*part.offsets[[i, i + 1]]) for i in (first, last))
        assert sample.sid == [str(part.sid[first])]
        assert sample.energy.item() == pytest.approx(part.energy[last])
        assert sample.energy_initial.item() == pytest.approx(part.energy[first])
        assert np.array_equal(sample.pos, part.pos[atoms])
        assert np.array_equal(sample.pos_relaxed, part.pos[end])
        assert np.array_equal(sample.tags, part.tags[atoms])
        assert np.array_equal(sample.fixed.bool(), part.fixed[atoms])
        assert torch.equal(sample.pos[sample.fixed == 1], sample.pos_relaxed[sample.fixed == 1])


@pytest.mark.parametrize("split", TEST_SPLITS)
def test_test_splits_are_structures_that_occur_nowhere_else(frames, folders, split):
    part = frames.of_split(split.replace("test", "val"))
    known = {pos.round(3).tobytes() for pos in np.split(frames.pos, frames.offsets[1:-1])}
    for name, task in ((split, "s2ef"), (f"is2re/{split}", "is2re")):
        data = OC20LmdbDataset({"src": str(folders[name]), "task": task})
        assert len(data) == len(np.unique(part.sid))
        fields = data.fields(0)
        assert not {"y", "force", "y_init", "y_relaxed", "pos_relaxed"} & fields.keys()
        assert ("fid" in fields) == (task == "s2ef")
        names = []
        for sample in data:
            assert "energy" not in sample
            assert sample.pos.numpy().round(3).tobytes() not in known
            names += sample.sid
        expected = [str(TEST_SID + sid) for sid in dict.fromkeys(part.sid.tolist())]
        assert names == ([f"{sid}_0" for sid in expected] if task == "s2ef" else expected)
        sample, start = data[0], part.pos[: part.natoms[0]]
        moved = np.abs(sample.pos.numpy() - start)
        assert moved[sample.fixed == 1].max() == 0
        assert 0.5 * TEST_RATTLE < moved[sample.fixed == 0].std() + moved.mean() < 2 * TEST_RATTLE


def test_is2re_normaliser_of_the_demo_config(folders):
    normalizer = OmegaConf.load(demo.EMBEDDED.parents[2] / "configs" / "data" / "demo_is2re.yaml")
    data = OC20LmdbDataset({"src": str(folders["is2re/train"]), "task": "is2re"})
    energy = np.array([sample.energy.item() for sample in data])
    stated = normalizer.normalizer
    assert stated.energy_mean == pytest.approx(energy.mean(), abs=1e-4)
    assert stated.energy_std == pytest.approx(energy.std(), abs=1e-4)
    noise = NoisyNodes()
    noisy = [noise(sample, index, 0) for index, sample in enumerate(data)]
    way = torch.cat([(s.pos_relaxed - s.pos)[s.fixed == 0] for s in noisy])
    assert stated.position_std == pytest.approx(way.square().mean().sqrt().item(), abs=1e-3)
    sizes = [len(sample.pos) for sample in data]
    assert normalizer.avg_num_nodes == pytest.approx(np.mean(sizes), abs=0.01)
