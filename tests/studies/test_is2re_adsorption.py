"""The study of adsorption energies on a small file of the same kind as the published one."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from ase.data import covalent_radii

from est_ocp.data import OC20LmdbDataset, write_oc20_lmdb
from est_ocp.errors import DataError


@pytest.fixture(scope="module")
def study(parts):
    return parts("is2re_adsorption")


@pytest.fixture(scope="module")
def structures(parts):
    return parts("adsorption.structures")


def nested(entries: dict[tuple[str, str, str, str], object]) -> dict:
    """Mapping by metal, adsorbate, site and coverage."""
    out: dict = {}
    for (metal, adsorbate, site, coverage), value in entries.items():
        inner = out.setdefault(metal, {}).setdefault(adsorbate, {}).setdefault(site, {})
        inner[coverage] = value
    return out


def relaxed(structures, metal, adsorbate, site, coverage) -> dict:
    """What a relaxation may have made of an ideal structure, atoms put into other images too."""
    atoms = structures.ideal_structure(metal, adsorbate, site, float(coverage))
    pos = atoms.positions.copy()
    pos[8:, 2] += 0.15
    pos[-1, 0] += 0.1
    pos[3] += atoms.cell.array[0]
    return {
        "symbols": atoms.get_chemical_symbols(),
        "cell": atoms.cell.array.tolist(),
        "pos": pos.tolist(),
    }


@pytest.fixture(scope="module")
def data_file(structures, tmp_path_factory) -> Path:
    """24 energies of two metals, and one relaxation that was not accepted."""
    keys = [
        (metal, adsorbate, site, coverage)
        for metal in ("Pt", "Cu")
        for adsorbate in ("O", "H", "Cl")
        for site, coverage in (
            ("fcc", "0.25"),
            ("ontop", "0.5"),
            ("bridge", "0.75"),
            ("hcp", "1.0"),
        )
    ]
    rng = np.random.default_rng(0)
    energies: dict = {key: float(rng.normal(-3, 1)) for key in keys}
    energies["Pt", "C", "fcc", "0.25"] = "Q"
    content = {
        "structures": nested({key: relaxed(structures, *key) for key in keys}),
        "energies": nested(energies),
    }
    path = tmp_path_factory.mktemp("adsorption") / "energies.json"
    path.write_text(json.dumps(content))
    return path


def test_entries_with_an_energy_are_read(structures, data_file):
    entries = structures.read_entries(data_file)
    assert len(entries) == 24
    assert {entry.adsorbate for entry in entries} == {"O", "H", "Cl"}
    assert entries[0].name == "Pt-O-fcc-0.25"
    assert all(isinstance(entry.energy, float) for entry in entries)


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"structures": {}, "energies": {}}'])
def test_another_file_is_refused(structures, tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"other\.json"):
        structures.read_entries(path)


@pytest.mark.parametrize("site", ["ontop", "bridge", "fcc", "hcp"])
@pytest.mark.parametrize("coverage", [0.25, 0.5, 0.75, 1.0])
def test_ideal_structures_have_the_bonds_of_their_site(structures, site, coverage):
    atoms = structures.ideal_structure("Pt", "O", site, coverage)
    count = round(4 * coverage)
    tags, fixed = atoms.get_tags(), atoms.arrays["fixed"]
    assert [int((tags == tag).sum()) for tag in (0, 1, 2)] == [12, 4, count]
    assert fixed.tolist() == [1] * 8 + [0] * (8 + count)
    assert atoms.positions[fixed == 1, 2].max() < atoms.positions[fixed == 0, 2].min() - 1
    # The number of nearest metal atoms tells the site; hollows differ by the second layer.
    partners = {"ontop": 1, "bridge": 2, "fcc": 3, "hcp": 3}[site]
    bond = covalent_radii[78] + covalent_radii[8]
    for adsorbed in np.flatnonzero(tags == 2):
        distance = np.sort(atoms.get_distances(adsorbed, np.flatnonzero(tags == 1), mic=True))
        assert distance[:partners] == pytest.approx(bond)
        assert (distance[partners:] > bond + 0.3).all()
        below = atoms.get_distances(adsorbed, np.flatnonzero(tags == 0)[8:], mic=True).min()
        if site == "hcp":
            height = structures.height("Pt", "O", "hcp") + 3.98 / np.sqrt(3)
            assert below == pytest.approx(height)
        if site == "fcc":
            assert below > structures.height("Pt", "O", "fcc") + 3.98 / np.sqrt(3) + 0.2
    if count > 1:
        spacing = 3.98 / np.sqrt(2)
        own = atoms.get_all_distances(mic=True)[-count:, -count:]
        assert own[own > 0].min() == pytest.approx(spacing)


def test_small_adsorbates_stay_above_the_surface(structures):
    assert structures.height("Pt", "H", "fcc") == pytest.approx(structures.LOWEST)
    assert structures.height("Pt", "Br", "fcc") > structures.height("Pt", "O", "fcc") > 1


def test_relaxed_structures_are_checked_against_their_name(structures, data_file):
    entries = structures.read_entries(data_file)
    assert all(structures.site_after_relaxation(entry) == entry.site for entry in entries)
    fcc, other = entries[0], entries[4]
    moved = structures.Entry("Pt", "O", "ontop", 0.25, 0.0, fcc.relaxed)
    assert structures.site_after_relaxation(moved) == "fcc"
    wrong = structures.Entry("Pt", "O", "fcc", 0.5, 0.0, fcc.relaxed)
    with pytest.raises(DataError, match=r"Pt-O-fcc-0\.5: the published structure is Pt16O"):
        structures.site_after_relaxation(wrong)
    stretched = fcc.relaxed | {"cell": (1.02 * np.array(fcc.relaxed["cell"])).tolist()}
    with pytest.raises(DataError, match="cell differs"):
        structures.site_after_relaxation(structures.Entry("Pt", "O", "fcc", 0.25, 0.0, stretched))
    assert other.adsorbate == "H"


def test_records_are_oc20_is2re(structures, data_file, tmp_path):
    entries = structures.read_entries(data_file)
    records = [structures.record(entry, i) for i, entry in enumerate(entries)]
    write_oc20_lmdb(tmp_path / "train", records, task="is2re")
    dataset = OC20LmdbDataset({"src": str(tmp_path / "train"), "task": "is2re"})
    sample = dataset[5]
    assert sample.energy.item() == pytest.approx(entries[5].energy, abs=1e-6)
    assert sample.sid[0] == "5"
    # Nothing relaxed is in the input, and what was moved to another image is moved back.
    moved = (sample.pos_relaxed - sample.pos).abs()
    assert moved.max() == pytest.approx(0.15, abs=1e-4)
    assert moved[:8].max() < 1e-4


def test_folds_and_the_trivial_predictor(study, structures, data_file):
    entries = structures.read_entries(data_file)
    folds = study.folds_of(entries, "metal")
    assert set(folds) == {"Pt", "Cu"}
    for metal, (train, test) in folds.items():
        assert sorted(train + test) == list(range(24))
        assert {entries[i].metal for i in test} == {metal}
        assert metal not in {entries[i].metal for i in train}
        oxygen = np.mean([entries[i].energy for i in train if entries[i].adsorbate == "O"])
        predicted = study.mean_predictor(entries, train, test)
        assert predicted[0] == pytest.approx(oxygen)
        assert len(set(predicted)) == 3
    train, test = study.folds_of(entries, "adsorbate")["O"]
    everything = np.mean([entries[i].energy for i in train])
    assert study.mean_predictor(entries, train, test) == pytest.approx([everything] * len(test))


def test_pairs_left_out_have_known_elements(study, structures, data_file):
    entries = structures.read_entries(data_file)
    folds = study.folds_of(entries, "pair")
    assert sorted(i for _, test in folds.values() for i in test) == list(range(24))
    for train, test in folds.values():
        pairs = {(entries[i].metal, entries[i].adsorbate) for i in train}
        for i in test:
            assert (entries[i].metal, entries[i].adsorbate) not in pairs
            assert entries[i].metal in {metal for metal, _ in pairs}
            assert entries[i].adsorbate in {adsorbate for _, adsorbate in pairs}


def test_the_additive_predictor_recovers_sums(study, structures, data_file):
    shift = {"Pt": 1.0, "Cu": -1.0, "O": -3.0, "H": -2.0, "Cl": 0.5, "fcc": 0.1, "ontop": 0.7}
    entries = [
        dataclasses.replace(
            e, energy=sum(shift.get(part, 0.0) for part in (e.metal, e.adsorbate, e.site))
        )
        for e in structures.read_entries(data_file)
    ]
    test = [i for i, e in enumerate(entries) if (e.metal, e.adsorbate) == ("Pt", "O")]
    train = [i for i in range(24) if i not in test]
    predicted = study.additive_predictor(entries, train, test)
    assert predicted == pytest.approx([entries[i].energy for i in test], abs=1e-9)
    # A metal that is new has no term of its own.
    train, test = study.folds_of(entries, "metal")["Pt"]
    predicted = study.additive_predictor(entries, train, test)
    assert np.ptp(np.subtract(predicted, [entries[i].energy for i in test])) < 1e-9


def row(model, fold, seed, mae) -> dict[str, str]:
    return {
        "by": "metal", "held_out": fold, "model": model, "seed": str(seed), "mae": str(mae),
        "rmse": str(2 * mae), "ewt": "0.1", "seconds": "3", "parameters": "1000",
    }  # fmt: skip


def test_only_folds_that_every_model_finished_are_compared(study):
    report = importlib.import_module("adsorption.report")
    rows = [row("mean", fold, 0, 0.6) for fold in ("Pt", "Cu")]
    rows += [row("est", "Pt", 0, 0.2), row("equiformer", "Pt", 0, 0.3)]
    rows += [row("est", "Cu", 0, 9.0), row("est", "Pt", 1, 9.0)]
    assert report.complete_folds(rows) == {"0": {"Pt"}}
    mae = report.by_fold(rows, "mae")
    assert {model: list(folds) for model, folds in mae.items()} == {
        "equiformer": ["Pt"], "est": ["Pt"], "mean": ["Pt"],
    }  # fmt: skip
    text = "\n".join(report.table(rows))
    assert "**0.200**" in text
    assert "9.0" not in text
    assert "-0.100 eV" in report.comparison(rows)
    assert "the lower of the two in 1 folds of 1" in report.comparison(rows)


def test_processes_share_the_items_and_report_errors(study, tmp_path):
    pool = importlib.import_module("adsorption.pool")
    items = [4.0, 9.0, -1.0, 16.0]
    results = list(pool.run_all(math.sqrt, items, 2, time.time() + 60, tmp_path))
    assert sorted(r for _, r, error in results if error is None) == [2.0, 3.0, 4.0]
    ((item, _, error),) = [r for r in results if r[2] is not None]
    assert item == -1.0
    assert "ValueError" in error


def test_processes_end_at_the_deadline(study, tmp_path):
    pool = importlib.import_module("adsorption.pool")
    started = time.time()
    results = list(pool.run_all(time.sleep, [0.01, 60.0, 60.0], 2, started + 3, tmp_path))
    assert [item for item, _, _ in results] == [0.01]
    assert time.time() - started < 30


def test_the_command_from_data_to_page(study, data_file, tmp_path):
    out = tmp_path / "out"
    arguments = ["--data", str(data_file), "--out", str(out), "--models", "schnet"]
    arguments += ["--folds", "Cu", "--epochs", "1", "--device", "cpu", "--jobs", "0"]
    study.main(arguments)
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(out / "trainings.csv", newline="") as file:
        (trained,) = [line for line in csv.DictReader(file) if line["model"] == "schnet"]
    predicted = [r for r in rows if r["model"] == "schnet"]
    assert len(predicted) == 12
    assert {r["metal"] for r in predicted} == {"Cu"}
    errors = [abs(float(r["energy"]) - float(r["prediction"])) for r in predicted]
    assert float(trained["mae"]) == pytest.approx(np.mean(errors), abs=1e-4)
    page = (out / "is2re_adsorption.md").read_text()
    assert f"| SchNet | {int(trained['parameters']):,} |" in page
    assert str(tmp_path) not in page
    with open(out / "is2re_adsorption_errors.csv", newline="") as file:
        published = [r for r in csv.DictReader(file) if r["model"] == "schnet"]
    assert np.mean([abs(float(r["error"])) for r in published]) == pytest.approx(np.mean(errors))
    assert "energy" not in published[0]
    assert (out / "is2re_adsorption.png").stat().st_size > 10_000

    # Again: nothing is left to train, and a hand-written section stays.
    (out / "is2re_adsorption.md").write_text(page + "\n## Reading\n\nMine.\n")
    study.main(arguments)
    assert (out / "is2re_adsorption.md").read_text().endswith("## Reading\n\nMine.\n")
    with open(out / "predictions.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    with pytest.raises(SystemExit, match="other settings"):
        study.main([*arguments, "--lr", "1"])


def test_the_embedding_of_a_metal_left_out_can_be_another_ones(study, data_file, tmp_path, parts):
    arguments = ["--data", str(data_file), "--out", str(tmp_path), "--models", "equiformer"]
    arguments += ["--folds", "Cu", "--epochs", "1", "--device", "cpu", "--jobs", "0"]
    study.main([*arguments, "--keep-checkpoints"])
    parts("is2re_embedding").main(
        ["--folder", str(tmp_path), "--metal", "Cu", "--models", "equiformer"]
    )
    with open(tmp_path / "embeddings.csv", newline="") as file:
        rows = {row["embedding"]: row for row in csv.DictReader(file)}
    with open(tmp_path / "trainings.csv", newline="") as file:
        (trained,) = [row for row in csv.DictReader(file) if row["model"] == "equiformer"]
    assert list(rows) == ["its own, untrained", "Pt", "mean", "zero"]
    own = float(rows["its own, untrained"]["mae"])
    assert own == pytest.approx(float(trained["mae"]), abs=1e-4)
    # The mean of one metal's is that metal's.
    assert float(rows["mean"]["mae"]) == pytest.approx(float(rows["Pt"]["mae"]))
    assert float(rows["Pt"]["mae"]) != pytest.approx(own, abs=1e-4)
