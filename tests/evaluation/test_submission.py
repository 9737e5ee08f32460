"""Leaderboard files: both published forms, and what the check refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from est_ocp.data.record_index import RecordIndex
from est_ocp.errors import ConfigError, DataError
from est_ocp.evaluation import SplitPredictions
from est_ocp.evaluation.submission import write_submission
from est_ocp.evaluation.submission_check import SPLITS, check_submission


def one_split(seed: int) -> tuple[SplitPredictions, RecordIndex]:
    """Return random predictions and the index of their data, in another order."""
    rng = np.random.default_rng(seed)
    natoms = rng.integers(2, 6, 4)
    fixed = rng.random(natoms.sum()) < 0.5
    fixed[np.cumsum(natoms) - 1] = False
    fixed[0] = True
    predictions = SplitPredictions(
        ids=np.array([f"{10 * seed + i}_7" for i in range(4)]),
        energy=rng.normal(size=4),
        forces=rng.normal(size=(natoms.sum(), 3)),
        natoms=natoms,
        fixed=fixed,
    )
    nfree = predictions.free_atoms_only().natoms
    order = rng.permutation(4)
    return predictions, RecordIndex(predictions.ids[order], natoms[order], nfree[order])


@pytest.fixture
def data():
    """Predictions and indexes by split."""
    pairs = {split: one_split(seed) for seed, split in enumerate(SPLITS)}
    return {s: p for s, (p, _) in pairs.items()}, {s: i for s, (_, i) in pairs.items()}


@pytest.mark.parametrize("forces", ["all", "free"])
@pytest.mark.parametrize("ids", ["sid", "sid_fid", None])
def test_the_two_published_forms(data, tmp_path, forces, ids):
    splits, indexes = data
    found = write_submission(tmp_path / "file.npz", splits, indexes, forces, ids)
    assert {s.forces for s in found.values()} == {forces}
    with np.load(tmp_path / "file.npz") as file:
        expected = {f"{s}_{p}" for s in SPLITS for p in ("ids", "energy", "forces", "chunk_idx")}
        assert set(file.files) == expected
        for split, p in splits.items():
            kept = p.free_atoms_only() if forces == "free" else p
            names = [name.removesuffix("_7") if ids == "sid" else name for name in p.ids]
            assert file[f"{split}_ids"].tolist() == names
            assert file[f"{split}_energy"].dtype == file[f"{split}_forces"].dtype == np.float32
            chunks = np.split(file[f"{split}_forces"], file[f"{split}_chunk_idx"])
            assert [len(chunk) for chunk in chunks] == kept.natoms.tolist()
            np.testing.assert_array_equal(np.concatenate(chunks), kept.forces.astype(np.float32))
    assert not list(tmp_path.glob("*.partial"))


def test_is2re_files_hold_ids_and_energies(data, tmp_path):
    splits = {s: replace(p, forces=None, ids=np.arange(4).astype(str)) for s, p in data[0].items()}
    write_submission(tmp_path / "file.npz", splits)
    with np.load(tmp_path / "file.npz") as file:
        assert set(file.files) == {f"{s}_{p}" for s in SPLITS for p in ("ids", "energy")}
    found = check_submission(tmp_path / "file.npz", forces="all")
    assert found["id"].forces == "none"
    assert not found["id"].compared


def test_sids_alone_do_not_tell_frames_apart(data, tmp_path):
    splits = data[0]
    splits["id"] = replace(splits["id"], ids=np.array(["1_0", "1_1", "2_0", "3_0"]))
    with pytest.raises(DataError, match=r"several frames of the system '1'.*sid_fid"):
        write_submission(tmp_path / "file.npz", splits, None, "all", "sid")


def test_a_missing_split_and_wrong_options_are_errors(data, tmp_path):
    splits, indexes = data
    with pytest.raises(ConfigError, match="forces must be"):
        write_submission(tmp_path / "file.npz", splits, indexes, "some")
    with pytest.raises(ConfigError, match="ends in"):
        write_submission(tmp_path / "file.zip", splits, indexes)
    with pytest.raises(DataError, match="some of these predictions have forces"):
        write_submission(
            tmp_path / "file.npz", {**splits, "id": replace(splits["id"], forces=None)}
        )
    del splits["ood_cat"]
    with pytest.raises(DataError, match="'test_ood_cat'"):
        write_submission(tmp_path / "file.npz", splits, indexes)


def test_a_file_that_fails_the_check_is_not_written(data, tmp_path):
    splits, indexes = data
    (tmp_path / "file.npz").write_bytes(b"earlier")
    splits["ood_ads"].energy[2] = np.nan
    with pytest.raises(DataError, match=r"'ood_ads_energy' of .*file\.npz has 1 values"):
        write_submission(tmp_path / "file.npz", splits, indexes)
    assert (tmp_path / "file.npz").read_bytes() == b"earlier"
    assert len(list(tmp_path.iterdir())) == 1


def swap(**changes):
    """Return a change of a file's arrays; None removes one."""

    def apply(fields):
        for key, change in changes.items():
            value = change(fields.pop(key)) if callable(change) else change
            if value is not None:
                fields[key] = value

    return apply


def rename(fields):
    fields["test_id_ids"] = fields.pop("id_ids")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "unknown key 'test_id_ids'"),
        (swap(extra_energy=np.zeros(4)), "unknown key 'extra_energy'"),
        (swap(ood_both_energy=lambda a: None), "lacks the key 'ood_both_energy'"),
        (swap(id_energy=lambda a: a.astype(np.float64)), "'id_energy'.*float64, not float32"),
        (swap(id_energy=lambda a: a[:, None]), "shape .4, 1., not 1-D"),
        (swap(id_energy=lambda a: a[1:]), "3 values for 4 identifiers"),
        (swap(id_energy=lambda a: a * np.float32("inf")), "not finite"),
        (swap(ood_cat_forces=lambda a: a[:, :2]), r"not \[N, 3\]"),
        (swap(ood_cat_forces=lambda a: a * np.float32("nan")), "'ood_cat_forces'.*not finite"),
        (swap(ood_cat_forces=lambda a: a[:-1]), "ood_cat_chunk_idx.*gives '23_7'"),
        (swap(ood_cat_forces=lambda a: a[:3]), "does not ascend"),
        (swap(id_chunk_idx=lambda a: np.append(a, a[-1])), "4 values for 4 structures"),
        (swap(id_chunk_idx=lambda a: a[::-1]), "does not ascend"),
        (swap(id_chunk_idx=lambda a: a.astype(float)), "not whole numbers"),
        (swap(id_ids=lambda a: np.where(a == "1_7", "2_7", a)), "holds '2_7' twice"),
        (swap(id_ids=lambda a: np.where(a == "1_7", "99_7", a)), "first is '99_7'"),
        (swap(id_ids=lambda a: a[:, None]), "'id_ids'.*not 1-D"),
        (swap(id_ids=lambda a: a.astype(object)), "'id_ids'.*cannot be read"),
    ],
)
def test_the_check_refuses(change, message, data, tmp_path):
    splits, indexes = data
    write_submission(tmp_path / "file.npz", splits, indexes)
    with np.load(tmp_path / "file.npz") as file:
        fields = {key: file[key] for key in file.files}
    change(fields)
    np.savez(tmp_path / "wrong.npz", **fields)
    with pytest.raises(DataError, match=message):
        check_submission(tmp_path / "wrong.npz", indexes)


def test_missing_structures_need_the_data_to_be_seen(data, tmp_path):
    splits, indexes = data
    short = replace(
        splits["id"],
        ids=splits["id"].ids[:3],
        energy=splits["id"].energy[:3],
        natoms=splits["id"].natoms[:3],
        forces=splits["id"].forces[: splits["id"].natoms[:3].sum()],
    )
    write_submission(tmp_path / "file.npz", {**splits, "id": short})
    assert check_submission(tmp_path / "file.npz")["id"].structures == 3
    with pytest.raises(DataError, match="lacks 1 of the data's 4 structures, the first is '3_7'"):
        check_submission(tmp_path / "file.npz", indexes)


def test_a_file_of_the_other_task_than_the_data_is_refused(data, tmp_path):
    splits, indexes = data
    energies = {s: replace(p, forces=None) for s, p in splits.items()}
    write_submission(tmp_path / "energies.npz", energies, indexes, task="is2re")
    with pytest.raises(DataError, match="energies alone, as for IS2RE, but the data are S2EF's"):
        check_submission(tmp_path / "energies.npz", indexes, task="s2ef")
    with pytest.raises(DataError, match="forces, as for S2EF, but the data are IS2RE's"):
        write_submission(tmp_path / "forces.npz", splits, indexes, task="is2re")
    assert not (tmp_path / "forces.npz").exists()


def test_wanted_forces_and_mixed_forces(data, tmp_path):
    splits, indexes = data
    write_submission(tmp_path / "free.npz", splits, indexes, "free")
    assert check_submission(tmp_path / "free.npz", indexes, "free")["id"].forces == "free"
    with pytest.raises(DataError, match="forces of free atoms, not of all atoms"):
        check_submission(tmp_path / "free.npz", indexes, "all")
    mixed = {**splits, "id": splits["id"].free_atoms_only()}
    with pytest.raises(DataError, match="all atoms in some splits and of free in others"):
        write_submission(tmp_path / "mixed.npz", mixed, indexes)


def test_things_that_are_no_archives(tmp_path):
    (tmp_path / "text.npz").write_text("ids")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for file in ("text.npz", "array.npy", "nothing.npz"):
        with pytest.raises(DataError, match=file):
            check_submission(tmp_path / file)
