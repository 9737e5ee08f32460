"""Each check of the preflight is seen to pass on sound data and to fail on bad data."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import DictConfig

from est_ocp.cli.config import resolve
from est_ocp.cli.main import main
from est_ocp.data import SPLITS, load_demo_frames, write_oc20_lmdb
from est_ocp.errors import ConfigError
from est_ocp.preflight import Check, Report, Status, preflight, run_checks
from est_ocp.preflight.known import recognise
from est_ocp.preflight.label_checks import composition_r2
from tests.training.launch import CONFIGS, DEBUG

#: As in the demonstration set's data config.
STD = 1.6504


def records(split: str, count: int = 24) -> list[dict]:
    """Sound S2EF records of the demonstration set."""
    found = list(load_demo_frames().of_split(split).records())
    return [dict(record) for record in found[:: len(found) // count][:count]]


def write(folder: Path, change=lambda split, found: found) -> Path:
    """Write the five splits, each after a change of its records; an empty list leaves it out."""
    for split in SPLITS:
        changed = change(split, records(split))
        if changed:
            write_oc20_lmdb(folder / split, changed)
    return folder


@functools.cache
def resolved(config: Path, *overrides: str) -> DictConfig:
    """A config whose data are in ROOT; resolving takes longer than all checks."""
    base = ["optim.warmup_epochs=0.1"] if config == DEBUG else []
    return resolve(config, ["data.root=ROOT", *base, *overrides])


def check(root: Path, *overrides: str, config: Path = DEBUG, **options) -> dict[str, Check]:
    """Checks by name."""
    node = resolved(config, *overrides).copy()
    if not any("run_dir" in word for word in overrides):
        node.job.run_dir = str(root)
    for role in ("train", "eval"):
        for split in node.runner[f"{role}_dataloader"].dataset.dataset_configs.oc20.splits.values():
            split.src = split.src.replace("ROOT", str(root))
    return {c.name: c for c in preflight(node, samples=32, **options).checks}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("sound"))


def failing(checks: dict[str, Check]) -> set[str]:
    return {name for name, c in checks.items() if c.status is Status.FAIL}


def test_sound_data_passes_every_check(sound):
    checks = check(sound)
    wrong = {n: c for n, c in checks.items() if c.status is not Status.OK}
    assert not wrong
    for name in (
        "structures (val_ood_both)", "records (train)", "identifiers (train)", "elements (train)",
        "free atoms (train)", "tags (train)", "energy labels (train)", "energy normaliser",
        "force labels (val_id)", "force normaliser", "atoms a batch", "neighbours", "steps",
        "model", "loss", "gradients", "memory", "disk", "devices", "run folder",
    ):  # fmt: skip
        assert name in checks
    assert checks["structures (train)"].figures["count"] == 24
    labels = [r["energy"] for r in records("train")]
    assert checks["energy labels (train)"].figures["mean"] == pytest.approx(np.mean(labels))
    natoms = np.mean([len(r["pos"]) for r in records("train")])
    assert checks["atoms a batch"].figures["mean_atoms"] == pytest.approx(natoms)
    assert checks["steps"].figures["steps_per_epoch"] == 6
    assert checks["loss"].figures["losses"].keys() == {"energy", "forces"}


def totals(split, found):
    """Energies as DFT gives them: a few eV for each atom, by element."""
    for record in found:
        z = np.asarray(record["atomic_numbers"])
        record["energy"] += float((-3.0 - 0.05 * z).sum())
    return found


def one_total(split, found):
    found[3]["energy"] -= 150.0
    return found


def repeated(split, found):
    return [*found, found[0]]


def all_fixed(split, found):
    found[2]["fixed"] = np.ones(len(found[2]["pos"]))
    return found


def no_tags(split, found):
    for record in found:
        record["tags"] = np.zeros(len(record["pos"]))
    return found


def none_fixed(split, found):
    for record in found:
        record["fixed"] = np.zeros(len(record["pos"]))
    return found


def no_forces(split, found):
    for record in found:
        record["forces"] = np.zeros_like(record["forces"])
    return found


def unlabelled(split, found):
    for record in found:
        record.pop("energy")
        record.pop("forces")
    return found


def broken(split, found):
    found[1]["pos"] = np.full_like(found[1]["pos"], np.nan)
    return found


def heavy(split, found):
    found[1]["atomic_numbers"] = np.full_like(found[1]["atomic_numbers"], 95)
    return found


def overlapping(split, found):
    found[0]["pos"] = found[0]["pos"].copy()
    found[0]["pos"][-1] = found[0]["pos"][-2] + 0.1
    return found


@pytest.mark.parametrize(
    ("change", "name", "status", "words"),
    [
        (totals, "energy labels (train)", Status.FAIL, "total energies"),
        (one_total, "energy labels (val_id)", Status.FAIL, "1 of 24 look like total"),
        (repeated, "identifiers (train)", Status.FAIL, "more than once"),
        (all_fixed, "free atoms (train)", Status.FAIL, "1 of 24 structures have none"),
        (none_fixed, "free atoms (train)", Status.WARN, "100%"),
        (no_tags, "tags (train)", Status.WARN, "with 0"),
        (no_forces, "force labels (train)", Status.FAIL, "largest component 0.00"),
        (unlabelled, "energy labels (train)", Status.FAIL, "24 of 24 have no energy"),
        (unlabelled, "force labels (train)", Status.FAIL, "24 of 24 structures have no forces"),
        (unlabelled, "loss", Status.FAIL, "has no 'energy'"),
        (broken, "records (train)", Status.FAIL, "not finite"),
        (heavy, "elements (train)", Status.FAIL, "to 95; the model takes 1 to 89"),
        (overlapping, "closest pair", Status.FAIL, "0.17 Å"),
    ],
)
def test_bad_data_is_found(tmp_path, change, name, status, words):
    found = check(write(tmp_path, change))[name]
    assert found.status is status
    assert words in found.found
    assert found.remedy


def test_the_normaliser_is_not_fitted_to_wrong_labels(tmp_path):
    found = check(write(tmp_path, totals))["energy normaliser"]
    assert (found.status, found.remedy) == (Status.SKIP, "")


def test_only_the_split_that_is_wrong_fails(tmp_path):
    checks = check(write(tmp_path, lambda s, r: totals(s, r) if s == "val_ood_cat" else r))
    assert failing(checks) == {"energy labels (val_ood_cat)"}


def test_a_missing_split_is_named_and_the_others_are_checked(tmp_path):
    checks = check(write(tmp_path, lambda s, r: [] if s == "val_ood_ads" else r))
    assert failing(checks) == {"structures (val_ood_ads)"}
    assert "val_ood_ads" in checks["structures (val_ood_ads)"].found
    assert checks["structures (train)"].status is Status.OK


def test_an_empty_file_and_a_missing_training_set(tmp_path):
    root = write(tmp_path, lambda s, r: [] if s == "train" else r)
    (root / "train").mkdir()
    (root / "train" / "data.0000.lmdb").write_bytes(b"")
    checks = check(root)
    assert "structures (train)" in failing(checks)
    assert "is empty (0 bytes)" in checks["structures (train)"].found
    assert checks["loss"].status is Status.SKIP


def test_missing_metadata_is_no_failure_and_nothing_is_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("EST_OCP_CACHE", str(tmp_path / "cache"))
    root = write(tmp_path)
    (root / "train" / "metadata.npz").unlink()
    found = check(root)["metadata (train)"]
    assert found.status is Status.WARN
    assert "est_ocp.data.metadata" in found.remedy
    assert not (root / "train" / "metadata.npz").exists()
    assert not list(tmp_path.glob("cache/natoms/*.npz"))


def test_metadata_of_other_structures_are_refused(tmp_path):
    root = write(tmp_path)
    np.savez(root / "val_id" / "metadata.npz", natoms=np.full(24, 7))
    found = check(root)["structures (val_id)"]
    assert found.status is Status.FAIL
    assert "metadata.npz" in found.found


@pytest.mark.parametrize(
    ("override", "name", "status", "words"),
    [
        ("data.normalizer.energy_std=20", "energy normaliser", Status.FAIL, "rmsd 20"),
        ("data.normalizer.energy_std=3.5", "energy normaliser", Status.WARN, "rmsd 3.5"),
        ("data.normalizer.energy_mean=9", "energy normaliser", Status.FAIL, "mean 9"),
        ("data.normalizer.forces_std=500", "force normaliser", Status.FAIL, "rmsd 500"),
        ("data.normalizer.forces_std=0.1", "force normaliser", Status.WARN, "rmsd 0.1"),
        ("tasks.forces.normalizer.mean=1", "force normaliser", Status.FAIL, "mean 1"),
        ("model.backbone.max_num_elements=40", "elements (train)", Status.FAIL, "1 to 39"),
        ("data.avg_num_nodes=78", "head energy", Status.WARN, "avg_num_nodes 78"),
        ("model.backbone.graph.cutoff=1.0", "neighbours", Status.FAIL, "have none"),
        ("+model.backbone.avg_degree=300", "neighbours", Status.WARN, "max_neighbors 8"),
        ("batch_size=100", "steps", Status.WARN, "100 a step"),
        ("optim.warmup_epochs=5", "steps", Status.WARN, "5 in all"),
        ("+model.backbone.lmx=2", "model", Status.FAIL, "did you mean 'lmax'"),
        ("checkpoint_every=null", "disk", Status.WARN, "no checkpoints"),
        ("model.backbone.regress_forces=false", "model", Status.FAIL, "regress_forces"),
    ],
)
def test_a_wrong_config_is_found(sound, override, name, status, words):
    found = check(sound, override)[name]
    assert found.status is status
    assert words in found.found
    assert found.remedy


def test_a_head_without_its_task_leaves_parameters_without_gradient(sound):
    checks = check(sound, "task_list=[${tasks.energy}]")
    assert checks["gradients"].status is Status.FAIL
    assert "output_heads.forces" in checks["gradients"].found
    assert "force labels (train)" not in checks


def test_memory_is_judged_by_the_gpu(sound):
    assert check(sound, gpu_gib=1e-4)["memory"].status is Status.FAIL
    small = check(sound)["memory"].figures
    large = check(sound, "batch_size=8")["memory"].figures
    ratio = large["activations_gib"] / small["activations_gib"]
    assert ratio == pytest.approx(2, rel=0.2)
    assert small["states_gib"] * 2**30 == 20 * 12345


def test_a_full_disk_and_a_folder_that_cannot_be_written(sound, monkeypatch, tmp_path):
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr(run_checks.shutil, "disk_usage", lambda path: full)
    assert check(sound)["disk"].status is Status.FAIL
    (tmp_path / "file").write_text("")
    found = check(sound, f"job.run_dir={tmp_path / 'file' / 'runs'}")["run folder"]
    assert found.status is Status.FAIL
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    words = [f"job.run_dir={tmp_path}", "job.timestamp_id=old"]
    assert check(sound, *words)["run folder"].status is Status.WARN


def test_gpus_that_are_not_here(sound, monkeypatch):
    words = ["cluster=local_gpu", "job.scheduler.ranks_per_node=8"]
    monkeypatch.setattr(run_checks.torch.cuda, "device_count", lambda: 0)
    assert check(sound, *words)["devices"].status is Status.WARN
    monkeypatch.setattr(run_checks.torch.cuda, "device_count", lambda: 2)
    found = check(sound, *words)["devices"]
    assert found.status is Status.FAIL
    assert "ranks_per_node=2" in found.remedy
    assert check(sound, *words)["steps"].figures["total_batch"] == 32


def test_sizes_of_oc20_are_recognised(tmp_path):
    for src, count in {
        "/x/s2ef/2M/train": 2_000_000,
        "/x/s2ef/all/train/data.0000.lmdb": 133_934_018,
        "/x/s2ef/200k/train": 200_000,
        "/x/s2ef/all/val_ood_cat": 999_809,
        "/x/is2re/all/train/data.lmdb": 460_328,
        "/x/is2re/10k/train": 10_000,
        "/x/is2re/all/test_ood_both/data.lmdb": 24_985,
    }.items():
        assert recognise(src).count == count
    assert recognise("data/demo/train") is None
    assert recognise("/mine/s2ef/train") is None
    assert recognise("data/demo/is2re/val_id") is None

    root = tmp_path / "s2ef"
    write_oc20_lmdb(root / "200k" / "train", records("train"))
    for split in SPLITS[1:]:
        write_oc20_lmdb(root / "all" / split, records(split))
    checks = check(tmp_path, "data=oc20_s2ef_200k")
    assert "24 of 200,000 in OC20 s2ef train 200k" in checks["structures (train)"].found
    assert "structures (train)" in failing(checks)
    whole = check(tmp_path, "data=oc20_s2ef_200k", "+data.train.first_n=20")
    assert whole["structures (train)"].status is Status.WARN
    assert "first_n" in whole["structures (train)"].remedy


def test_composition_explains_total_and_not_adsorption_energies():
    frames = [r for r in load_demo_frames().of_split("train").records()]
    numbers = [np.asarray(r["atomic_numbers"]) for r in frames]
    energy = np.array([r["energy"] for r in frames])
    total = np.array([e + (-3 - 0.05 * z).sum() for e, z in zip(energy, numbers, strict=True)])
    assert composition_r2(total, numbers) > 0.95
    assert composition_r2(energy, numbers) < 0.6
    assert composition_r2(energy[:5], numbers[:5]) is None


def is2re(split: str, count: int = 12) -> list[dict]:
    """The demonstration's structures as IS2RE records."""
    return [
        {k: r[k] for k in ("pos", "atomic_numbers", "cell", "tags", "fixed")}
        | {"sid": i, "y_relaxed": r["energy"], "y_init": r["energy"] + 0.3, "pos_relaxed": r["pos"]}
        for i, r in enumerate(records(split, count))
    ]


def test_is2re_configs_are_checked_too(tmp_path):
    for split in SPLITS:
        write_oc20_lmdb(tmp_path / "is2re" / "all" / split, is2re(split), task="is2re")
    config = tmp_path / "schnet.yml"
    config.write_text(
        "hydra: {searchpath: [pkg://est_ocp.configs]}\n"
        "defaults: [train_is2re, override model: schnet_is2re, override cluster: local_cpu]\n"
    )
    words = ["model.backbone.channels=16", "model.backbone.num_layers=1"]
    checks = check(tmp_path, *words, config=config)
    assert failing(checks) == {f"structures ({split})" for split in SPLITS}
    assert checks["structures (train)"].figures["expected"] == 460_328
    assert checks["loss"].figures["losses"].keys() == {"energy"}
    assert checks["gradients"].status is Status.OK
    assert "force labels (train)" not in checks
    assert checks["head energy"].status is Status.WARN


def test_the_command_prints_a_table_and_writes_json(sound, tmp_path, capsys):
    words = [str(DEBUG), f"data.root={sound}", f"job.run_dir={tmp_path}", "--samples", "16"]
    file = tmp_path / "preflight.json"
    assert main(["preflight", *words, "optim.warmup_epochs=0.1", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "OK    energy labels (val_id)" in out
    assert "energy labels" in out.splitlines()[7]
    content = json.loads(file.read_text())
    assert content["status"] == "OK"
    assert content["checks"][0] | {"figures": None} == {
        "name": "structures (train)", "status": "OK", "found": "24", "remedy": "", "figures": None,
    }  # fmt: skip
    words += ["optim.warmup_epochs=0.1", "data.normalizer.energy_std=40.0"]
    assert main(["preflight", *words, "data.normalizer.forces_std=1.0"]) == 2
    out = capsys.readouterr().out
    assert "FAIL  energy normaliser" in out
    assert "-> set data.normalizer.energy_mean" in out
    assert out.splitlines()[-1].endswith("OK, 1 FAIL")


def test_a_config_that_trains_nothing_is_refused(capsys):
    with pytest.raises(ConfigError, match="not a training config"):
        preflight(resolve(CONFIGS / "s2ef" / "predict.yml", ["checkpoint=x"]))
    assert main(["preflight", "nothing.yml"]) == 2
    assert "nothing.yml does not exist" in capsys.readouterr().err


def test_the_gravest_outcome_decides():
    report = Report([Check("a", Status.OK, "x"), Check("b", Status.SKIP, "x")])
    assert (report.status, report.exit_code) == (Status.SKIP, 0)
    report.checks.append(Check("c", Status.WARN, "x", "y"))
    assert (report.status, report.exit_code) == (Status.WARN, 0)
    report.checks.append(Check("d", Status.FAIL, "x", "y"))
    assert (report.status, report.exit_code) == (Status.FAIL, 2)
