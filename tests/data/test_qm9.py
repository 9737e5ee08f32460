"""QM9: both sources give the same records, the split is pinned, files are whole or refused."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from est_ocp.data import (
    EvaluationBatchSampler,
    FixedSizeBatchSampler,
    QM9Dataset,
    collate_molecules,
    create_qm9_dataset,
    get_dataloader,
    write_qm9,
)
from est_ocp.data.qm9_edges import radius_edges
from est_ocp.data.qm9_lmdb import read_molecules, read_summary, write_molecules
from est_ocp.data.qm9_molecules import Molecules
from est_ocp.data.qm9_sources import (
    _PACK_COLUMNS,
    _RAW_COLUMNS,
    FULL_SIZE,
    read_pyg_raw,
    read_qm9pack,
)
from est_ocp.data.qm9_split import draw_split, load_split, part_of
from est_ocp.data.qm9_subset import read_subset
from est_ocp.errors import ConfigError, DataError
from est_ocp.models.graph import EDGE_INDEX, EDGE_VEC
from est_ocp.qm9_targets import HARTREE, TARGETS

SYMBOLS = {1: "H", 6: "C", 7: "N", 8: "O", 9: "F"}
#: Sums of the molecules' numbers in the split.
VAL_SUM, TEST_SUM = 667_647_649, 722_217_173
#: Of the subset: one of validation and test at least are among these.
COUNT = 40


@pytest.fixture(scope="module")
def subset() -> Molecules:
    return read_subset()


@pytest.fixture(scope="module")
def few(subset) -> Molecules:
    return subset.take(np.arange(COUNT))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("qm9")
    write_qm9(folder, "subset")
    return folder


def labels_of(molecules: Molecules, i: int) -> list[str]:
    """The labels as the sources print them."""
    values = molecules.targets[i].copy()
    for k, target in enumerate(TARGETS.values()):
        if target.unit == "eV":
            values[k] /= HARTREE
    return [f"{value:.6f}".rstrip("0") for value in values]


def atoms_of(molecules: Molecules, i: int) -> list[tuple[str, np.ndarray]]:
    one = molecules.take([i])
    return [(SYMBOLS[z], p) for z, p in zip(one.numbers.tolist(), one.pos, strict=True)]


def write_pack(folder: Path, molecules: Molecules) -> Path:
    """The three CSVs of qm9pack, as far as they are read, in a wheel."""
    parts = np.array_split(np.arange(len(molecules)), 3)
    wheel = folder / "qm9pack-1.0.3-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for number, part in enumerate(parts, start=1):
            file = folder / f"qm9_part{number}.csv"
            with file.open("w", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow(["SMILES", "Index", "Elements", "XYZ_Ang", *_PACK_COLUMNS])
                for i in part:
                    atoms = atoms_of(molecules, i)
                    xyz = ",".join(f"[{','.join(f'{v:.4f}' for v in p)}]" for _, p in atoms)
                    elements = "[" + ",".join(f"'{symbol}'" for symbol, _ in atoms) + "]"
                    row = ["C", molecules.index[i], elements, f"[{xyz}]", *labels_of(molecules, i)]
                    writer.writerow(row)
            archive.write(file, f"qm9pack/data/{file.name}")
    return wheel


def write_raw(folder: Path, molecules: Molecules, left_out: list[int]) -> Path:
    """PyG's raw files; ``left_out`` are listed as unconverged."""
    raw = folder / "raw"
    raw.mkdir()
    with (raw / "gdb9.sdf").open("w") as sdf, (raw / "gdb9.sdf.csv").open("w") as table:
        table.write(f"mol_id,A,B,C,{','.join(_RAW_COLUMNS)},u0_atom\n")
        for i, number in enumerate(molecules.index):
            atoms = atoms_of(molecules, i)
            sdf.write(
                f"gdb_{number}\n -OEChem-\n\n{len(atoms):3d}  0  0     0  0  0  0  0  0999 V2000\n"
            )
            for symbol, p in atoms:
                sdf.write("".join(f"{v:10.4f}" for v in p) + f" {symbol:<3} 0  0  0\n")
            sdf.write("M  END\n$$$$\n")
            table.write(f"gdb_{number},1,1,1,{','.join(labels_of(molecules, i))},0\n")
    rows = "".join(f"  {number:6d}  C1CC1  C1CC1  x\n" for number in left_out)
    (raw / "uncharacterized.txt").write_text(
        f"Unconverged\n===\nIndex  GDB\n---\n{rows}---\n {len(left_out)} compounds\n"
    )
    return folder


def test_both_sources_give_the_same_records(few, tmp_path):
    extra = few.take(np.arange(COUNT))
    left_out = few.index[[3, 17]].tolist()
    raw = read_pyg_raw(write_raw(tmp_path, extra, left_out))
    pack = read_qm9pack(write_pack(tmp_path, few.take(np.delete(np.arange(COUNT), [3, 17]))))
    assert len(raw) == COUNT - 2
    for name, array in pack.arrays().items():
        np.testing.assert_array_equal(array, raw.arrays()[name], err_msg=name)
    np.testing.assert_allclose(
        pack.pos, few.take(np.delete(np.arange(COUNT), [3, 17])).pos, atol=6e-5
    )
    folder = read_qm9pack(tmp_path)
    np.testing.assert_array_equal(folder.index, pack.index)


def test_the_sources_write_the_same_splits(few, tmp_path):
    raw = write_raw(tmp_path, few, [])
    wheel = write_pack(tmp_path, few)
    a = write_qm9(tmp_path / "a", "pyg-raw", raw)
    b = write_qm9(tmp_path / "b", "qm9pack", wheel)
    assert a["molecules"] == b["molecules"]
    assert a["content"] == b["content"]
    assert min(a["molecules"].values()) > 0


def test_a_wrong_list_of_unconverged_molecules_is_refused(few, tmp_path):
    write_raw(tmp_path, few, few.index[:2].tolist())
    failed = tmp_path / "raw" / "uncharacterized.txt"
    failed.write_text(failed.read_text().replace("2 compounds", "3054 compounds"))
    with pytest.raises(DataError, match="says 3054 compounds but lists 2"):
        read_pyg_raw(tmp_path)


def test_missing_and_damaged_sources_are_one_clear_error(few, tmp_path):
    with pytest.raises(DataError, match=r"lacks gdb9\.sdf"):
        read_pyg_raw(tmp_path)
    with pytest.raises(DataError, match=r"holds no qm9_part1.csv.*pip download qm9pack==1.0.3"):
        read_qm9pack(tmp_path)
    with pytest.raises(DataError, match="there is no"):
        read_qm9pack(tmp_path / "nothing")
    wheel = write_pack(tmp_path, few)
    (tmp_path / "cut.whl").write_bytes(wheel.read_bytes()[:-2000])
    with pytest.raises(DataError, match="not a wheel"):
        read_qm9pack(tmp_path / "cut.whl")
    part = tmp_path / "qm9_part2.csv"
    part.write_text(part.read_text()[:-60])
    with pytest.raises(DataError, match=r"qm9_part2.csv' of .* cannot be read"):
        read_qm9pack(tmp_path)


def test_the_split_is_the_pinned_one():
    parts = load_split()
    assert {name: len(part) for name, part in parts.items()} == {"val": 10_000, "test": 10_831}
    assert not set(parts["val"]) & set(parts["test"])
    # Checksums of the numbers, whatever the packing.
    assert int(parts["val"].sum(dtype=np.int64)) == VAL_SUM
    assert int(parts["test"].sum(dtype=np.int64)) == TEST_SUM
    assert part_of([parts["val"][0], parts["test"][-1]]).tolist() == [1, 2]


def test_the_split_is_a_permutation_of_all_molecules():
    drawn = draw_split(np.arange(1, FULL_SIZE + 1))
    assert [len(drawn[name]) for name in ("train", "val", "test")] == [110_000, 10_000, 10_831]
    assert len(np.unique(np.concatenate(list(drawn.values())))) == FULL_SIZE


def test_the_subset_keeps_to_the_split(written, subset):
    sizes = {"train": 1600, "val": 200, "test": 200}
    assert read_summary(written)["molecules"] == sizes
    for number, name in enumerate(sizes):
        part = read_molecules(written / name / "data.lmdb")
        assert (part_of(part.index) == number).all()
        np.testing.assert_array_equal(
            part.targets, subset.take(np.flatnonzero(np.isin(subset.index, part.index))).targets
        )


def test_references_leave_small_numbers_and_add_up_again(written):
    whole = read_molecules(written / "train" / "data.lmdb")
    for name in ("U0", "Cv", "gap"):
        dataset = QM9Dataset({"src": str(written / "train"), "target": name})
        column = list(TARGETS).index(name)
        label = dataset.tensors.label.double().numpy()
        np.testing.assert_allclose(label + dataset.references, whole.targets[:, column], atol=1e-5)
        assert np.abs(label).max() < 40
    assert (
        abs(QM9Dataset({"src": str(written / "train"), "target": "U0"}).tensors.label.mean()) < 0.02
    )


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_loads_as_labels_less_references(written, target):
    made = QM9Dataset({"src": str(written / "val"), "target": target, "cutoff": 5.0})
    column = list(TARGETS).index(target)
    batch = made.tensors.batch(torch.arange(len(made)), ["qm9"] * len(made))
    whole = batch.target.double().numpy() + made.references
    spread = made.molecules.targets[:, column].std()
    np.testing.assert_allclose(whole, made.molecules.targets[:, column], atol=1e-5 * spread)
    assert made.references.any() == TARGETS[target].has_references


def test_a_second_call_writes_nothing_and_a_broken_file_is_made_again(written, tmp_path):
    first = write_qm9(tmp_path, "subset")
    file = tmp_path / "val" / "data.lmdb"
    before = file.stat().st_mtime_ns
    assert write_qm9(tmp_path, "subset") == first
    assert file.stat().st_mtime_ns == before
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(DataError, match="write it again with `est-ocp data qm9`"):
        read_molecules(file)
    write_qm9(tmp_path, "subset")
    assert len(read_molecules(file)) == 200
    assert not list(tmp_path.glob("**/*.partial"))


def test_blocks_join_in_order(few, tmp_path):
    write_molecules(tmp_path / "data.lmdb", few, block=7)
    for name, array in read_molecules(tmp_path / "data.lmdb").arrays().items():
        np.testing.assert_array_equal(array, few.arrays()[name])


def test_edges_are_all_pairs_below_the_cutoff(few):
    source, target, nedges = radius_edges(few, 3.0)
    ends, starts = np.cumsum(nedges), np.cumsum(few.natoms, dtype=int) - few.natoms
    for i in (0, 11, COUNT - 1):
        pos = few.pos[starts[i] : starts[i] + few.natoms[i]]
        near = np.linalg.norm(pos[:, None] - pos[None], axis=-1) <= 3.0
        np.fill_diagonal(near, False)
        part = slice(ends[i] - nedges[i], ends[i])
        assert nedges[i] == near.sum()
        assert set(zip(target[part].tolist(), source[part].tolist(), strict=True)) == set(
            zip(*(a.tolist() for a in np.nonzero(near)), strict=True)
        )


@pytest.fixture(scope="module")
def joined(written):
    splits = {name: {"src": str(written / name)} for name in ("train", "val")}
    config = {"format": "qm9_lmdb", "target": "U0", "cutoff": 5.0, "splits": splits}
    return create_qm9_dataset({"qm9": config})


@pytest.fixture(scope="module")
def task():
    return SimpleNamespace(
        name="target", level="system", property="target", datasets=["qm9"], inference_only=False,
        out_spec=SimpleNamespace(dim=[1], dtype="float32"),
        train_on_free_atoms=True, eval_on_free_atoms=True,
    )  # fmt: skip


def test_a_batch_cut_at_once_is_fairchems_batch_of_single_samples(joined, task):
    chosen = [0, 1700, 5, 1799]
    collate = collate_molecules([task])
    batch, expected = collate(joined.__getitems__(chosen)), collate([joined[i] for i in chosen])
    assert batch.keys() == expected.keys()
    assert batch.dataset_name == ["qm9.train", "qm9.val", "qm9.train", "qm9.val"]
    for key in sorted(batch.keys()):
        if torch.is_tensor(batch[key]):
            assert batch[key].dtype == expected[key].dtype, key
            assert torch.equal(batch[key], expected[key]), key
        else:
            assert batch[key] == expected[key], key
    vec = batch.pos[batch[EDGE_INDEX][0]] - batch.pos[batch[EDGE_INDEX][1]]
    assert torch.equal(vec, batch[EDGE_VEC])
    assert (vec.norm(dim=1) <= 5.0).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_visits_every_molecule_once(joined, task, workers):
    def sampler(dataset, num_replicas, rank):
        return FixedSizeBatchSampler(dataset, 64, num_replicas, rank)

    loader = get_dataloader(
        joined, sampler, collate_molecules([task]), num_workers=workers, persistent_workers=False
    )
    seen = [sid for batch in loader for sid in batch.sid]
    assert len(seen) == len(set(seen)) == len(joined) == 1800
    ends = EvaluationBatchSampler(joined, 100)
    assert len(list(ends)) == 18


def test_wrong_settings_are_named(written):
    src = str(written / "train")
    with pytest.raises(ConfigError, match="'U_0' is no target of QM9"):
        QM9Dataset({"src": src, "target": "U_0"})
    with pytest.raises(ConfigError, match="targe"):
        QM9Dataset({"src": src, "targe": "U0"})
    with pytest.raises(ConfigError, match="cutoff of dataset qm9_lmdb must be positive"):
        QM9Dataset({"src": src, "target": "U0", "cutoff": -1})
    with pytest.raises(DataError, match=r"est-ocp data qm9 --out"):
        QM9Dataset({"src": str(written / "trian"), "target": "U0"})
    with pytest.raises(ConfigError, match="is not one of qm9pack, pyg-raw, subset"):
        write_qm9(written, "figshare")
    with pytest.raises(ConfigError, match="needs no --source"):
        write_qm9(written, "subset", "x")


def test_a_summary_that_is_damaged_is_refused(tmp_path):
    (tmp_path / "qm9.json").write_text(json.dumps({"mean": {}}))
    with pytest.raises(DataError, match="lacks some of its entries"):
        read_summary(tmp_path)


def test_molecules_with_other_elements_or_labels_are_refused(few):
    numbers = few.numbers.copy()
    numbers[-1] = 17
    with pytest.raises(DataError, match=f"molecule {few.index[-1]} of X has an element"):
        Molecules(few.index, few.natoms, numbers, few.pos, few.targets).check("X")
    targets = few.targets.copy()
    targets[4, 2] = np.nan
    with pytest.raises(DataError, match=f"molecule {few.index[4]} of X"):
        Molecules(few.index, few.natoms, few.numbers, few.pos, targets).check("X")
