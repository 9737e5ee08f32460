"""Records to AtomicData: every field, every name that OC20 used, every error."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from fairchem.core.common.registry import registry

from est_ocp.data import OC20LmdbDataset, write_oc20_lmdb
from est_ocp.data.write_lmdb import to_pyg
from est_ocp.errors import ConfigError, DataError
from tests.data.conftest import make_record, old_pyg_pickle, tensors
from tests.data.test_shards import edit


def dataset(path, **config) -> OC20LmdbDataset:
    return OC20LmdbDataset({"src": str(path), **config})


def one(tmp_path, payload: bytes, **config):
    """Return the first sample of a dataset whose first record is ``payload``."""
    path = tmp_path / "one" / "data.0000.lmdb"
    write_oc20_lmdb(path, [make_record(0), make_record(1)], overwrite=True)
    edit(path, {"0": payload})
    return dataset(path, **config)[0]


def test_registered():
    assert registry.get_dataset_class("est_oc20_lmdb") is OC20LmdbDataset


@pytest.mark.parametrize("old_names", [True, False])
def test_round_trip(tmp_path, old_names):
    records = [make_record(i) for i in range(9)]
    write_oc20_lmdb(tmp_path, records, shards=2, old_names=old_names)
    data = dataset(tmp_path)
    assert len(data) == 9
    for index, record in enumerate(records):
        sample = data[index]
        count = len(record["pos"])
        assert torch.equal(sample.pos, torch.tensor(record["pos"]))
        assert sample.atomic_numbers.tolist() == record["atomic_numbers"].tolist()
        assert torch.equal(sample.cell, torch.tensor(record["cell"])[None])
        assert sample.pbc.tolist() == [[True, True, True]]
        assert sample.natoms.tolist() == [count]
        assert sample.tags.tolist() == record["tags"].tolist()
        assert sample.fixed.tolist() == record["fixed"].tolist()
        assert sample.energy.tolist() == [record["energy"]]
        assert torch.equal(sample.forces, torch.tensor(record["forces"]))
        assert sample.sid == [f"{record['sid']}_{record['fid']}"]
        assert sample.sample_id.tolist() == [index]
        assert sample.dataset == "oc20"
    assert data[-1].sample_id.tolist() == [8]
    assert data.get_metadata("natoms", [0, 8]) == [3, 6]


def test_pyg1_record(tmp_path, monkeypatch):
    record = tensors(make_record(4))
    record["atomic_numbers"] = record["atomic_numbers"].float()
    record["y"], record["force"] = record.pop("energy"), record.pop("forces")
    record |= {"natoms": 7, "cell_offsets": torch.zeros(5, 3), "edge_index": torch.zeros(2, 5)}
    sample = one(tmp_path, old_pyg_pickle(monkeypatch, **record))
    assert torch.equal(sample.pos, record["pos"])
    assert sample.energy.tolist() == [3.5]
    assert torch.equal(sample.forces, record["force"])
    assert sample.edge_index.shape == (2, 0)


def test_missing_optional_fields(tmp_path):
    record = make_record(3, labelled=False)
    bare = {key: record[key] for key in ("pos", "atomic_numbers", "cell")}
    sample = one(tmp_path, pickle.dumps(bare))
    assert sample.tags.tolist() == sample.fixed.tolist() == [0] * 6
    assert sample.sid == ["0"]
    assert "energy" not in sample
    assert "forces" not in sample


def test_is2re(tmp_path):
    records = []
    for number in range(3):
        record = make_record(number, labelled=False)
        del record["fid"]
        relaxed = record["pos"] + 0.5
        records.append(record | {"y_init": 1.0, "y_relaxed": -number, "pos_relaxed": relaxed})
    (path,) = write_oc20_lmdb(tmp_path, records, task="is2re")
    assert path.name == "data.lmdb"
    sample = dataset(tmp_path, task="is2re")[2]
    assert sample.energy.tolist() == [-2.0]
    assert sample.energy_initial.tolist() == [1.0]
    assert torch.equal(sample.pos_relaxed, torch.tensor(records[2]["pos_relaxed"]))
    assert sample.sid == ["1002"]
    assert "forces" not in sample


@pytest.mark.parametrize("tag", [3, -1])
def test_is2re_models_embed_tags_so_they_are_checked(tmp_path, tag):
    record = make_record(3, labelled=False)
    record["tags"][1] = tag
    with pytest.raises(DataError, match=rf"record 0 of .* has tags \[{tag}\], where OC20 has"):
        one(tmp_path, pickle.dumps(record), task="is2re")
    assert tag in one(tmp_path, pickle.dumps(record), task="s2ef").tags


def test_test_split_without_labels(tmp_path):
    write_oc20_lmdb(tmp_path / "s2ef", [make_record(1, labelled=False)])
    write_oc20_lmdb(tmp_path / "is2re", [make_record(1, labelled=False)], task="is2re")
    for task in ("s2ef", "is2re"):
        sample = dataset(tmp_path / task, task=task)[0]
        assert "energy" not in sample
        assert "forces" not in sample


def test_key_mapping_and_transforms(tmp_path):
    write_oc20_lmdb(tmp_path, [make_record(1)])
    sample = dataset(
        tmp_path,
        key_mapping={"energy": "oc20_energy"},
        transforms={"common_transform": {"dataset_name": "mine"}},
    )[0]
    assert sample.oc20_energy.tolist() == [0.5]
    assert "energy" not in sample
    assert sample.dataset == "mine"


def with_field(record: dict, name: str, value) -> dict:
    return {key: item for key, item in (record | {name: value}).items() if item is not None}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pos", None, "no 'pos'"),
        ("atomic_numbers", None, "no 'atomic_numbers'"),
        ("pos", torch.zeros(0, 3), "no atoms"),
        ("pos", torch.zeros(6), "shape"),
        ("pos", torch.full((6, 3), torch.nan), "18 values in 'pos'"),
        ("pos", "text", "not numeric"),
        ("cell", torch.full((1, 3, 3), torch.inf), "9 values in 'cell'"),
        ("cell", torch.zeros(1, 3, 3), "no volume"),
        ("cell", None, "no volume"),
        ("cell", torch.zeros(6), "shape"),
        ("y", float("nan"), "1 values in 'y'"),
        ("force", torch.full((6, 3), torch.inf), "18 values in 'force'"),
        ("force", torch.zeros(5, 3), "'force' of shape"),
        ("atomic_numbers", torch.zeros(6), "atomic number 0"),
        ("atomic_numbers", torch.full((6,), 100), "atomic number 100"),
        ("atomic_numbers", torch.full((6,), 6.5), r"atomic number 6\.5"),
        ("atomic_numbers", torch.ones(5), "5 atomic numbers for 6"),
        ("natoms", 7, "natoms = 7"),
        ("natoms", [3, 3], "natoms = 3, 3"),
        ("natoms", 6.5, "'natoms' that are not whole"),
        ("tags", torch.zeros(4), "4 'tags' for 6"),
        ("tags", [1.5] * 6, "'tags' that are not whole"),
        ("fixed", [0, float("nan"), 1, 0, 0, 0], "1 values in 'fixed'"),
        ("fixed", "abc", "'fixed' that is not numeric"),
        ("pbc", [True, False], "'pbc' of shape"),
        ("pbc", "abc", "'pbc' that is not numeric"),
        ("sid", [], "'sid' that is neither"),
        ("sid", 1.5, "'sid' that is neither"),
        ("fid", float("nan"), "'fid' that is neither"),
        ("y", 1e300, "1 values in 'y' that are not finite"),
        ("force", torch.full((6, 3), 1e300, dtype=torch.float64), "18 values in 'force'"),
    ],
)
def test_bad_records(tmp_path, name, value, message):
    fields = dict(to_pyg(make_record(3)).to_dict())
    with pytest.raises(DataError, match=message) as caught:
        one(tmp_path, pickle.dumps(with_field(fields, name, value)))
    assert "record 0 of" in str(caught.value)
    assert "data.0000.lmdb" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "pbc"),
    [
        ("pbc", True, True),
        ("pbc", False, False),
        ("pbc", np.array([[True] * 3]), True),
        ("pbc", None, True),
        ("natoms", None, True),
        ("natoms", torch.tensor([6]), True),
        ("fixed", np.ones(6, bool), True),
        ("sid", torch.tensor([1003]), True),
    ],
)
def test_optional_fields_in_other_forms(tmp_path, name, value, pbc):
    sample = one(tmp_path, pickle.dumps(make_record(3) | {name: value}))
    assert sample.pbc.tolist() == [[pbc] * 3]
    assert sample.natoms.tolist() == [6]
    assert sample.sid == ["1003_3"]


@pytest.mark.parametrize("kind", [TypeError, ValueError, RuntimeError, IndexError])
def test_other_errors_name_the_record(tmp_path, monkeypatch, kind):
    def fail(*_, **__):
        raise kind("odd")

    write_oc20_lmdb(tmp_path, [make_record(1)])
    data = dataset(tmp_path)
    monkeypatch.setattr("est_ocp.data.oc20_lmdb.to_atomic_data", fail)
    with pytest.raises(DataError, match=r"record 0 of .*\(odd\); remove or repair"):
        data[0]
    with pytest.raises(IndexError):
        data[1]


def test_molecule_without_cell(tmp_path):
    fields = with_field(make_record(3), "cell", None)
    sample = one(tmp_path, pickle.dumps(fields | {"pbc": [False] * 3}))
    assert sample.pbc.tolist() == [[False] * 3]
    assert sample.cell.abs().sum() == 0


def test_max_num_elements(tmp_path):
    fields = with_field(make_record(3), "atomic_numbers", np.full(6, 101))
    assert one(tmp_path, pickle.dumps(fields), max_num_elements=120).atomic_numbers[0] == 101


def test_undecodable_record_names_its_place(tmp_path):
    with pytest.raises(DataError, match=r"record 0 of .*data\.0000\.lmdb.*damaged"):
        one(tmp_path, pickle.dumps(make_record(3))[:-40])
    with pytest.raises(DataError, match=r"record 0 of .*posix\.system|record 0 of .*nt\.system"):
        one(tmp_path, b"cposix\nsystem\n(S'true'\ntR.")


def test_config_errors(tmp_path):
    write_oc20_lmdb(tmp_path, [make_record(1)])
    with pytest.raises(ConfigError, match="did you mean 'max_num_elements'"):
        dataset(tmp_path, max_num_element=90)
    with pytest.raises(ConfigError, match="s2ef"):
        dataset(tmp_path, task="s2e")
    with pytest.raises(ConfigError, match="one folder or file"):
        OC20LmdbDataset({"src": [str(tmp_path)]})


def test_two_datasets_over_one_file_and_pickling(tmp_path):
    write_oc20_lmdb(tmp_path, [make_record(i) for i in range(3)])
    first, second = dataset(tmp_path), dataset(tmp_path)
    assert torch.equal(first[1].pos, second[1].pos)
    first.close()
    assert torch.equal(pickle.loads(pickle.dumps(first))[2].pos, second[2].pos)
