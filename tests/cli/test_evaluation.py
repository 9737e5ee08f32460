"""``est-ocp evaluate``, ``predict`` and ``submission`` through the commands themselves."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from est_ocp.cli.main import main
from est_ocp.data.demo_splits import TEST_SPLITS
from tests.cli.words import PROGRAM, SPLITS, data_of, error_of
from tests.training.launch import CONFIGS, run_command


@pytest.fixture(scope="module")
def evaluated(s2ef, tmp_path_factory):
    """Folder of the S2EF run's evaluation in batches of two."""
    out = tmp_path_factory.mktemp("evaluated")
    assert main(["evaluate", *s2ef, "--out", str(out), "eval_batch_size=2"]) == 0
    return out


def independent(file: Path) -> dict[str, float]:
    """Compute the metrics of a saved split by loops, in the units of the files."""
    with np.load(file) as saved:
        arrays = {name: saved[name] for name in saved.files}
    pairs = zip(arrays["energy"].tolist(), arrays["energy_label"].tolist(), strict=True)
    energy = [abs(a - b) for a, b in pairs]
    result = {
        "energy_mae_meV": 1000 * sum(energy) / len(energy),
        "ewt_percent": 100 * sum(e < 0.02 for e in energy) / len(energy),
    }
    if "forces" not in arrays:
        return result
    errors, cosines, within, start = [], [], 0, 0
    for count, error in zip(arrays["natoms"], energy, strict=True):
        worst = 0.0
        for atom in range(start, start + count):
            if arrays["fixed"][atom]:
                continue
            a, b = (arrays[k][atom].astype(float) for k in ("forces", "forces_label"))
            errors += list(abs(a - b))
            worst = max(worst, *abs(a - b))
            cosines.append(a @ b / max(np.sqrt(a @ a) * np.sqrt(b @ b), 1e-8))
        within += error < 0.02 and worst < 0.03
        start += count
    return result | {
        "forces_mae_meV_per_A": 1000 * np.mean(errors),
        "forces_cosine": np.mean(cosines),
        "efwt_percent": 100 * within / len(energy),
    }


def assert_metrics_agree(folder: Path, splits=SPLITS) -> None:
    found = json.loads((folder / "metrics.json").read_text())["model"]
    own = {split: independent(folder / f"{split}.npz") for split in splits}
    own["mean"] = {k: np.mean([m[k] for m in own.values()]) for k in own[splits[0]]}
    assert set(found) == set(own)
    for split, metrics in own.items():
        assert found[split] == pytest.approx(metrics, rel=1e-6, abs=1e-6)


def test_s2ef_figures_equal_an_independent_computation(evaluated):
    assert_metrics_agree(evaluated)


def test_is2re_with_plots_and_published_figures(is2re, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["evaluate", *is2re, "--out", str(tmp_path), "--plots", "--published"]) == 0
    out = capsys.readouterr().out
    assert "energy MAE (meV)" in out
    assert "force" not in out
    assert "EST, 6 layers" in out
    assert_metrics_agree(tmp_path)
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")
    saved = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.npz")}
    assert main(["evaluate", "--predictions", str(tmp_path)]) == 0
    assert capsys.readouterr().out in out
    assert saved == {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.npz")}


def test_only_what_is_missing_is_predicted(s2ef, evaluated, tmp_path, capsys):
    for split in SPLITS:
        shutil.copy(evaluated / f"{split}.npz", tmp_path)
    (tmp_path / "val_ood_cat.npz").unlink()
    damaged = (tmp_path / "val_id.npz").read_bytes()
    (tmp_path / "val_id.npz").write_bytes(damaged[: len(damaged) // 2])
    kept = {s: (tmp_path / f"{s}.npz").stat().st_mtime_ns for s in ("val_ood_ads", "val_ood_both")}
    assert main(["evaluate", *s2ef, "--out", str(tmp_path), "eval_batch_size=2"]) == 0
    assert kept == {s: (tmp_path / f"{s}.npz").stat().st_mtime_ns for s in kept}
    for split in SPLITS:
        assert_same_file(evaluated, tmp_path, split)
    assert "val_ood_ads:" not in capsys.readouterr().err


def assert_same_file(a: Path, b: Path, split: str) -> None:
    with np.load(a / f"{split}.npz") as one, np.load(b / f"{split}.npz") as other:
        assert one.files == other.files
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name], err_msg=f"{split} {name}")


def test_another_checkpoint_or_other_data_do_not_reuse_files(
    s2ef, evaluated, tiny_run, tmp_path, capsys
):
    shutil.copy(evaluated / "val_id.npz", tmp_path)
    (earlier,) = (tiny_run / "checkpoints").glob("step_3/inference_ckpt.pt")
    command = ["evaluate", "--splits", "val_id", "--out", str(tmp_path)]
    assert main([*command, "--checkpoint", str(earlier), *s2ef[2:]]) == 0
    with np.load(evaluated / "val_id.npz") as one, np.load(tmp_path / "val_id.npz") as other:
        assert not np.array_equal(one["energy"], other["energy"])
    data = tmp_path / "data"
    shutil.copytree(data_of(s2ef) / "val_ood_ads", data / "val_id")
    assert main([*command, "--checkpoint", str(earlier), *s2ef[2:4], f"data.root={data}"]) == 0
    with np.load(evaluated / "val_ood_ads.npz") as one, np.load(tmp_path / "val_id.npz") as other:
        np.testing.assert_array_equal(one["ids"], other["ids"])
    shutil.copy(evaluated / "val_ood_cat.npz", tmp_path)
    error = error_of(["evaluate", "--predictions", str(tmp_path)], capsys)
    assert "different checkpoints" in error


@pytest.mark.slow
def test_two_ranks_equal_one_exactly(s2ef, is2re, evaluated, tmp_path):
    two = ["job.scheduler.ranks_per_node=2", "eval_batch_size=2"]
    run_command([PROGRAM, "evaluate", *s2ef, "--out", str(tmp_path), *two])
    for split in SPLITS:
        assert_same_file(evaluated, tmp_path, split)
    assert (tmp_path / "metrics.json").read_text() == (evaluated / "metrics.json").read_text()
    one, other = tmp_path / "one", tmp_path / "other"
    run_command([PROGRAM, "predict", *is2re, "--out", str(one), "eval_batch_size=2"])
    run_command([PROGRAM, "predict", *is2re, "--out", str(other), *two])
    for split in TEST_SPLITS:
        assert_same_file(one, other, split)


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_with_the_split_it_had_reached(s2ef, evaluated, tmp_path):
    command = [PROGRAM, "evaluate", *s2ef, "--out", str(tmp_path), "eval_batch_size=2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "val_id.npz").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    first = (tmp_path / "val_id.npz").stat().st_mtime_ns
    assert not (tmp_path / "metrics.json").exists()
    run_command(command)
    assert (tmp_path / "val_id.npz").stat().st_mtime_ns == first
    assert not list(tmp_path.glob(".part*"))
    for split in SPLITS:
        assert_same_file(evaluated, tmp_path, split)


def test_a_prediction_config_takes_the_checkpoint_of_the_command(is2re, tmp_path, capsys):
    (tmp_path / "oc20" / "is2re").mkdir(parents=True)
    (tmp_path / "oc20" / "is2re" / "all").symlink_to(data_of(is2re) / "is2re")
    config = [str(CONFIGS / "is2re" / "predict.yml"), f"data.root={tmp_path / 'oc20'}"]
    out = tmp_path / "file.npz"
    command = ["submission", "make", *is2re[:2], "--predictions", str(tmp_path)]
    words = ["--out", str(out), "--config", *config, "cluster=local_cpu"]
    assert main([*command, *words]) == 0
    assert main(["submission", "check", str(out), "--config", *config]) == 0
    assert capsys.readouterr().out.count("ids are unique and complete\n") == 2


@pytest.mark.parametrize("form", [["all", "sid_fid"], ["free", "sid"]])
def test_a_leaderboard_file_from_saved_predictions(form, s2ef, tmp_path, tmp_path_factory, capsys):
    predictions, out = tmp_path / "predictions", tmp_path / "file.npz"
    assert main(["predict", *s2ef, "--out", str(predictions)]) == 0
    forces, ids = form
    command = ["submission", "make", "--predictions", str(predictions), "--out", str(out)]
    assert main([*command, "--forces", forces, "--ids", ids]) == 0
    assert "complete" in capsys.readouterr().out
    assert main(["submission", "check", str(out), *s2ef[2:], "--forces", forces]) == 0
    with np.load(out) as file, np.load(predictions / "test_ood_ads.npz") as saved:
        np.testing.assert_array_equal(file["ood_ads_energy"], saved["energy"])
        kept = ~saved["fixed"] if forces == "free" else slice(None)
        np.testing.assert_array_equal(file["ood_ads_forces"], saved["forces"][kept])
    (predictions / "test_ood_ads.npz").unlink()
    assert "test_ood_ads.npz is not there" in error_of(command, capsys)


def test_an_is2re_leaderboard_file_from_a_checkpoint(is2re, tmp_path, capsys):
    out = tmp_path / "file.npz"
    command = ["submission", "make", *is2re, "--predictions", str(tmp_path), "--out", str(out)]
    assert main(command) == 0
    assert main(["submission", "check", str(out), *is2re[2:]]) == 0
    assert "valid leaderboard file" in capsys.readouterr().out
    with np.load(out) as file:
        assert sorted(file.files)[:2] == ["id_energy", "id_ids"]
        fields = {key: file[key] for key in file.files}
    fields["id_ids"] = fields["id_ids"][::-1][1:]
    fields["id_energy"] = fields["id_energy"][1:]
    np.savez(tmp_path / "short.npz", **fields)
    error = error_of(["submission", "check", str(tmp_path / "short.npz"), *is2re[2:]], capsys)
    assert "lacks 1 of the data's 5 structures" in error
