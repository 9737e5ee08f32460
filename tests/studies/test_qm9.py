"""The study of models on QM9 at equal time: its trainings, its queue, its page."""

from __future__ import annotations

import csv
import sys
import tarfile
import time
from itertools import pairwise
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from est_ocp.cli.config import instantiate, resolve
from tests.training.launch import CONFIGS

FOLDER = CONFIGS / "qm9"

#: A stand-in for the script: its result says what the process was given; debug models fail or wait.
WORKER = """
import json, os, sys, time
from pathlib import Path
job = Path(sys.argv[sys.argv.index("--worker") + 1])
training = json.loads(job.read_text())["training"]
if training["target"] == "mu":
    sys.exit("no such thing")
if training["target"] == "r2":
    time.sleep(60)
gpu, began = os.environ.get("CUDA_VISIBLE_DEVICES"), time.time()
time.sleep(0.3)
result = {"gpu": gpu, "began": began, "ended": time.time()}
job.with_suffix(".result").write_text(json.dumps(result))
"""


@pytest.fixture(scope="module")
def study(parts):
    return parts("qm9")


@pytest.fixture
def script(tmp_path) -> Path:
    file = tmp_path / "worker.py"
    file.write_text(WORKER)
    return file


def module(name: str):
    return sys.modules[f"qm9study.{name}"]


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open() as stream:
        return list(csv.DictReader(stream))


def smoke(folder: Path, *words: str) -> list[str]:
    return [
        "--smoke", "--in-process", "--out", str(folder), "--models", "schnet",
        "--batch-size", "32", "--evaluations", "2", *words,
    ]  # fmt: skip


def test_it_runs_in_seconds_and_writes_its_page(study, tmp_path):
    pytest.importorskip("matplotlib")
    words = smoke(tmp_path, "--seconds", "2", "--lrs", "1e-3", "--lr-seconds", "1")
    assert study.main(words) == 0
    (row,) = rows_of(tmp_path / "trainings.csv")
    assert (row["model"], row["target"], row["unit"]) == ("schnet", "alpha", "bohr^3")
    assert float(row["test_mae"]) > 0
    assert int(row["steps"]) > 1
    assert float(row["train_seconds"]) >= 2
    assert float(row["lr"]) == 1e-3
    (swept,) = rows_of(tmp_path / "lr_sweep.csv")
    assert (swept["model"], float(swept["lr"]), float(swept["seconds"])) == ("schnet", 1e-3, 1.0)
    curve = rows_of(tmp_path / "curves.csv")
    # Evaluations after half of the time and at its end, however many epochs that is; a step may
    # take more than half of it.
    assert 1 <= len(curve) <= 2
    assert float(curve[-1]["trained"]) == pytest.approx(float(row["train_seconds"]), abs=0.06)
    assert int(curve[-1]["step"]) == int(row["steps"])
    assert float(curve[-1]["val_mae"]) == pytest.approx(float(row["val_mae"]), rel=1e-3)
    page = (tmp_path / "README.md").read_text()
    assert "| SchNet | 0.45M |" in page
    assert "## Learning rates" in page
    assert (tmp_path / "curves.png").stat().st_size > 1000
    (tmp_path / "README.md").unlink()
    packed = tmp_path / "packed.tar.gz"
    assert study.main(["--report", "--out", str(tmp_path), "--pack", str(packed)]) == 0
    assert (tmp_path / "README.md").read_text() == page
    (tmp_path / "README.md").write_text(f"{page}\n## Remarks\n\nBy hand.\n")
    for _ in range(2):
        assert study.main(["--report", "--out", str(tmp_path)]) == 0
        assert (tmp_path / "README.md").read_text() == f"{page}\n## Remarks\n\nBy hand.\n"
    assert "--smoke --in-process" in page
    with tarfile.open(packed) as archive:
        names = set(archive.getnames())
    assert {"page/README.md", "page/trainings.csv", "page/curves.png"} <= names
    assert "runs/alpha-schnet-seed0-2s/metrics.jsonl" in names
    # Nothing is trained twice.
    assert study.main(words) == 0
    assert len(rows_of(tmp_path / "trainings.csv")) == 1


@pytest.mark.slow
def test_a_training_goes_on_in_a_later_call_elsewhere(study, tmp_path):
    first, second, paused = tmp_path / "first", tmp_path / "second", tmp_path / "paused.tar.gz"
    words = ("--seconds", "4", "--pause-after", "2.5")
    assert study.main(smoke(first, *words, "--pack-paused", str(paused))) == 0
    assert not (first / "trainings.csv").exists()
    assert study.main(smoke(second, *words, "--continue-from", str(paused))) == 0
    (row,) = rows_of(second / "trainings.csv")
    assert float(row["train_seconds"]) >= 4
    clock = [
        line
        for line in (second / "runs/alpha-schnet-seed0-4s/metrics.jsonl").read_text().splitlines()
        if '"clock"' in line
    ]
    trained = [float(line.split('"trained": ')[1].split(",")[0]) for line in clock]
    assert trained == sorted(trained)
    # What the first call trained is in both.
    assert trained[0] < 4 <= trained[-1]
    timed = [int(line.split('"timed_steps": ')[1].rstrip("}")) for line in clock]
    assert timed == sorted(timed)
    # The first step of each call does not count.
    assert int(row["steps"]) == timed[-1] + 2


def test_all_targets_at_once_are_in_one_table(study):
    report, targets = module("report"), module("report").TARGETS
    rows = [
        {
            "target": name, "trained_on": "all", "model": model, "seed": str(seed),
            "seconds": "300", "lr": "0.0005", "test_mae": str(error), "val_mae": "1",
            "parameters": "1e6", "epochs": "3", "molecules_per_second": "5000",
        }
        for name in targets
        for model, error in (("equiformer", 1.0), ("est_ga", 2.0))
        for seed in range(1)
    ]  # fmt: skip
    text = report.joint_table(rows)
    assert text.splitlines()[0].count("(meV)") == 8
    assert "| Equiformer | 1.00M | 0.0005 | 3.0 | 5000 | 1 | 1 |" in text
    assert "| *theirs, one model a target: Equiformer, 300 epochs*" in text


def errors(**of: list[float]) -> list[dict[str, str]]:
    return [
        {"target": "gap", "model": model, "test_mae": str(error), "seconds": "300",
         "epochs": "10"}
        for model, found in of.items()
        for error in found
    ]  # fmt: skip


def test_verdicts_say_where_est_loses_and_what_is_noise(study):
    verdicts = module("reading").verdicts
    line, caution = verdicts(errors(gotennet=[50.0], est_gata=[60.0]))
    assert "20.0% higher (50 to 60 meV)." in line
    assert "one training" in caution
    line, caution = verdicts(errors(gotennet=[49.0, 51.0], est_gata=[59.0, 61.0]))
    assert line.endswith("outside the noise.")
    assert "standard deviation" in caution
    line, _ = verdicts(errors(gotennet=[40.0, 60.0], est_gata=[50.0, 70.0]))
    assert line.endswith("inside the noise.")


def test_extrapolation_needs_two_lengths_and_follows_their_power(study):
    extrapolations = module("reading").extrapolations
    short = errors(est_ga=[80.0])
    assert extrapolations(short) == []
    long = [{**short[0], "seconds": "1200", "epochs": "40", "test_mae": "40"}]
    (line,) = extrapolations(short + long)
    assert "to the power -0.50" in line
    # 40 meV times (300 / 40)**-0.5.
    assert "would give 14.6 meV" in line


def test_the_best_rate_of_the_sweep_is_taken_and_it_is_no_other_training(study, tmp_path):
    tables, training = module("tables").Tables(tmp_path), module("training").Training
    found = {1e-3: 3.0, 5e-4: 2.0, 2e-4: float("nan")}
    for rate, error in found.items():
        one = training("est", "gap", 0, 60.0, rate, sweep=True)
        row = dict.fromkeys(module("tables").TRAININGS, "") | {
            "model": "est", "trained_on": "gap", "lr": rate, "seconds": "60",
        }  # fmt: skip
        assert one.key not in tables.done()
        tables.add(one, {"rows": [row], "curve": [{"val_mae": error}]})
        assert one.key in tables.done()
    assert tables.best_rate("est") == 5e-4
    assert tables.best_rate("schnet") is None
    table = module("report").sweep_table(tables.sweep)
    assert "| EST | nan | **2** | 3 |" in table
    assert training("est", "gap", 0, 60.0, 5e-4).key not in tables.done()


def queue(study, tmp_path, script, seconds: float, gpus, **changes):
    settings = module("training").Settings(out=str(tmp_path / "out"), data="data", **changes)
    deadline = time.perf_counter() + seconds
    return module("queue").Queue(settings, script, gpus, deadline, overhead=0.0)


def trainings(*targets: str, seconds: float = 1.0):
    return [module("training").Training("est", target, 0, seconds) for target in targets]


def test_every_gpu_trains_one_after_the_other(study, tmp_path, script, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    results = {}
    made = queue(study, tmp_path, script, 60, [0, 1])
    wanted = trainings("alpha", "gap", "homo", "mu", "lumo")
    failed, left = made.run(wanted, lambda t, result: results.update({t.target: result}))
    assert [one.target for one in failed] == ["mu"]
    assert left == []
    assert sorted(results) == ["alpha", "gap", "homo", "lumo"]
    for gpu in ("4", "7"):
        spans = sorted((r["began"], r["ended"]) for r in results.values() if r["gpu"] == gpu)
        assert spans
        assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_several_share_a_gpu_where_that_is_asked_for(study, tmp_path, script):
    assert queue(study, tmp_path, script, 60, [0, 1], per_gpu=2).slots == [0, 1, 0, 1]


def test_time_is_a_hard_limit_and_what_is_finished_stays(study, tmp_path, script):
    results = {}
    made = queue(study, tmp_path, script, 3, [None])
    long = trainings("lumo", seconds=100.0)
    wanted = [*trainings("alpha"), *long, *trainings("r2", "gap")]
    started = time.perf_counter()
    failed, left = made.run(wanted, lambda t, result: results.update({t.target: result}))
    assert time.perf_counter() - started < 30
    assert list(results) == ["alpha"]
    assert failed == []
    # Too long to begin, ended, and never begun.
    assert [one.target for one in left] == ["lumo", "r2", "gap"]


def configured(training):
    """Backbone's class, its update, and all the rest of what a training's config says."""
    module_ = module("training")
    settings = module_.Settings(out="runs", data="data")
    config = module("models").config_of(training.model)[0]
    resolved = resolve(FOLDER / f"{config}.yml", module_.overrides(training, settings))
    runner = OmegaConf.to_container(resolved.runner, resolve=True)
    backbone = runner["train_eval_unit"]["model"]["backbone"]
    return backbone.pop("model"), backbone.pop("update"), without_job(runner)


def test_hosts_and_their_est_variants_differ_in_the_update_alone(study):
    make = module("training").Training
    for est, hosts in module("models").HOSTS.items():
        kind, update, rest = configured(make(est, "U0", 3))
        for host in hosts:
            other, feed_forward, same = configured(make(host, "U0", 3))
            assert other != kind
            assert feed_forward != update
            assert same == rest


def without_job(config):
    """The same without the job's names and folders."""
    if isinstance(config, dict):
        return {key: without_job(value) for key, value in config.items() if key != "job_config"}
    return [without_job(value) for value in config] if isinstance(config, list) else config


@pytest.mark.parametrize("est", ["est_ga", "est_gata"])
def test_the_wide_hosts_have_as_many_parameters(study, est):
    models = module("models")

    def count(model: str) -> int:
        config, words = models.config_of(model)
        resolved = resolve(FOLDER / f"{config}.yml", ["data.target=alpha", *words])
        made = instantiate(resolved.runner.train_eval_unit.model, "the model")
        return sum(p.numel() for p in made.parameters())

    assert count(models.HOSTS[est][1]) == pytest.approx(count(est), rel=1e-3)
