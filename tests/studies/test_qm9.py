"""The study of models on QM9 at equal time: its trainings, its queue, its page."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from est_ocp.cli.config import instantiate, resolve
from tests.training.launch import CONFIGS

FOLDER = CONFIGS / "qm9"

#: A stand-in for the script: its result says what the process was given; some fail or take long.
#: With a lock file it waits for its turn as a training does.
WORKER = """
import fcntl, json, os, sys, time
from pathlib import Path
job = Path(sys.argv[sys.argv.index("--worker") + 1])
content = json.loads(job.read_text())
target, turn, started = content["training"]["target"], content["turn"], time.time()
if target == "mu":
    sys.exit("no such thing")
if turn:
    lock = os.open(turn, os.O_RDWR)
    fcntl.lockf(lock, fcntl.LOCK_EX)
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
if target == "r2":
    time.sleep(60)
gpu, began = os.environ.get("CUDA_VISIBLE_DEVICES"), time.time()
time.sleep(0.8 if turn else 0.3)
result = {"gpu": gpu, "started": started, "began": began, "ended": time.time()}
job.with_suffix(".result").write_text(json.dumps(result))
"""

#: Takes its turn, and leaves a child behind as a loader's worker that outlives its training.
TURN = """
import os, sys, time
from gpu_turn import GpuTurn
turn = GpuTurn(sys.argv[1])
print("ready", flush=True)
turn.on_train_start(None, None)
if os.fork():
    print("mine", flush=True)
time.sleep(60)
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
    assert "| SchNet | 0.45M |" in page.partition("### Speed, 2 s")[2]
    assert "## Learning rates" in page
    assert (tmp_path / "curves.png").stat().st_size > 1000
    (tmp_path / "README.md").unlink()
    packed = tmp_path / "packed.tar.gz"
    assert study.main(["--report", "--out", str(tmp_path), "--pack", str(packed)]) == 0
    assert (tmp_path / "README.md").read_text() == page
    for by_hand in ("## Remarks\n\nBy hand.\n", "## Reading\n\nShort.\n\n## Remarks\n\nBy hand.\n"):
        (tmp_path / "README.md").write_text(f"{page}\n{by_hand}")
        for _ in range(2):
            assert study.main(["--report", "--out", str(tmp_path)]) == 0
            assert (tmp_path / "README.md").read_text() == f"{page}\n{by_hand}"
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


def targets_column(text: str, target: str) -> int:
    heads = text.splitlines()[0].strip("| ").split(" | ")[2:]
    return next(i for i, head in enumerate(heads) if head.startswith(f"{target} ("))


def test_all_targets_at_once_are_in_one_table(study):
    report, targets = module("report"), module("report").TARGETS
    rows = [
        {
            "target": name, "trained_on": "all", "model": model, "seed": str(seed),
            "seconds": "300", "lr": "0.0005", "test_mae": str(error), "val_mae": "1",
        }
        for name in targets
        for model, error in (("equiformer", 1.0), ("est_ga", 2.0))
        for seed in range(1)
    ]  # fmt: skip
    text = report.joint_table(rows)
    assert text.splitlines()[0].count("(meV)") == 8
    assert "| Equiformer | 0.0005 | 1 | 1 |" in text
    theirs = {
        line.split(": ")[1].split("*")[0]: line.split("* | | ")[1].split(" | ")
        for line in text.splitlines()
        if line.startswith("| *theirs, one model a target: ")
    }
    column = targets_column(text, "alpha")
    assert {label: cells[column] for label, cells in theirs.items()} == {
        "Equiformer, 300 epochs": "0.046",
        "EST (Table 3)": "0.042",
        "EST + GA (Table 3)": "0.041",
        "GotenNet, 4 layers (Table 11)": "0.033",
        "EST + GATA, 4 layers (Table 11)": "0.03",
    }


def errors(**of: list[float]) -> list[dict[str, str]]:
    return [
        {"target": "gap", "model": model, "test_mae": str(error), "seconds": "300",
         "epochs": "10"}
        for model, found in of.items()
        for error in found
    ]  # fmt: skip


def test_pairs_are_one_table_each_with_the_better_one_in_bold(study):
    tables = module("pairs").pair_tables
    lines = tables(errors(gotennet=[50.0], gotennet_wide=[62.5], est_gata=[60.0]))
    head, _, row, *_, caution, _ = lines
    assert head.startswith("| target | GotenNet | GotenNet + EST (EST + GATA) | change |")
    assert row == "| gap (meV) | **50** | 60 | +20.0% | 62.5 | -4.0% |"
    assert "one training" in caution
    # A host alone is no pair, nor is the variant with a host that was not trained on its target.
    assert tables(errors(gotennet=[50.0], equiformer=[40.0])) == []
    (lonely,) = errors(est_gata=[60.0])
    assert tables([*errors(gotennet=[50.0]), {**lonely, "target": "homo"}]) == []


def test_pairs_say_which_differences_are_noise(study):
    tables = module("pairs").pair_tables
    *_, row, _, caution, _ = tables(errors(gotennet=[49.0, 51.0], est_gata=[59.0, 61.0]))
    assert row == "| gap (meV) | **50 ± 1.4** | 60 ± 1.4 | +20.0% |"
    assert "standard deviation" in caution
    *_, row, _, _, _ = tables(errors(gotennet=[60.0, 80.0], est_gata=[50.0, 70.0]))
    assert row == "| gap (meV) | 70 ± 14 | **60 ± 14** | -14.3% (noise) |"


def test_speed_is_compared_with_the_host(study):
    rows = [
        {
            "model": model, "parameters": "1e6", "molecules_per_second": rate, "steps": "1000",
            "epochs": "1.5", "peak_gib": "12.34", "batch_size": "100", "speed": "tf32",
        }
        for model, rate in (("gotennet", "2000"), ("gotennet", "2200"), ("est_gata", "1050"))
    ]  # fmt: skip
    *_, host, est = module("report").speed_table(rows).splitlines()
    # 1000 steps of 100 are 1.5 epochs: 2100 molecules/s make 1.89 in a minute.
    assert host == "| GotenNet | 1.00M | 2100 |  | 1.89 | 1000 | 1.5 | 12.3 | tf32 |"
    assert est.startswith("| GotenNet + EST (EST + GATA) | 1.00M | 1050 | 0.50 |")


def test_only_what_can_be_captured_is_called_so(study):
    made = module("training").Settings
    settings = made(out="", data="", device="cuda", cuda_graphs="training")
    assert settings.speed(True) == "tf32, CUDA graphs"
    assert settings.speed(False) == "tf32"
    assert made(out="", data="").speed(True) == "fp32"


def curve(model: str, points: dict[int, float], **changes: str) -> list[dict[str, str]]:
    row = {"trained_on": "gap", "model": model, "seed": "0", "seconds": "300"} | changes
    return [
        row | {"trained": str(30 * number), "step": str(step), "val_mae": str(error)}
        for number, (step, error) in enumerate(points.items(), 1)
    ]


def test_equal_steps_are_interpolated_in_the_logarithm(study):
    steps = module("pairs").equal_steps
    host = curve("equiformer", {100: 90.0, 200: 40.0, 300: 10.0})
    _, _, row, _, caution, _ = steps([*host, *curve("est_ga", {80: 80.0, 250: 22.0})])
    # 40 to 10: 20 in the middle.
    assert row == (
        "| Equiformer + EST (EST + GA) | Equiformer | gap (meV) | 250 | 20 | 22 | +10.0% | "
        "+120.0% |"
    )
    assert "learning rates" in caution
    # Nothing in common, or not the same target.
    assert steps([*host, *curve("est_ga", {20: 80.0, 90: 70.0})]) == []
    assert steps([*host, *curve("est_ga", {80: 80.0, 250: 22.0}, trained_on="homo")]) == []
    # Of several seeds, the mean at the fewest steps.
    again = curve("equiformer", {100: 90.0, 250: 60.0}, seed="1")
    _, _, row, *_ = steps([*host, *again, *curve("est_ga", {80: 80.0, 260: 22.0})])
    assert "| gap (meV) | 250 | 40 |" in row


def test_lengths_are_not_mixed_and_the_longest_is_last(study, tmp_path):
    tables, report = module("tables"), module("report")
    for seconds, errors_ in (("1200", (20.0, 10.0)), ("300", (50.0, 60.0))):
        for model, error in zip(("gotennet", "est_gata"), errors_, strict=True):
            row = dict.fromkeys(tables.TRAININGS, "1") | {
                "target": "gap", "trained_on": "gap", "model": model, "seconds": seconds,
                "test_mae": error, "epochs": "3" if seconds == "300" else "12",
            }  # fmt: skip
            points = curve(model, {10: 2 * error, 20: error}, seconds=seconds)
            training = module("training").Training(model, "gap", 0, float(seconds))
            tables.Tables(tmp_path).add(training, {"rows": [row], "curve": points})
    page = report.write_page(tmp_path).read_text()
    _, short, long = page.split("\n## ")[:3]
    assert short.startswith("300 s, one model a target")
    assert "| gap (meV) | **50** | 60 | +20.0% |" in short
    assert long.startswith("1200 s, one model a target")
    assert "| gap (meV) | 20 | **10** | -50.0% |" in long
    for part, seconds in ((short, 300), (long, 1200)):
        heads = [line for line in part.splitlines() if line.startswith("### ")]
        assert len(heads) == 4
        assert all(f"{seconds} s" in head for head in heads)
    assert "300 or 1200 s of training each" in page
    found = module("figure").panels(tables.Tables(tmp_path).curves)
    assert found == [("gap", "300"), ("gap", "1200")]


def test_growth_needs_two_lengths_and_follows_their_power(study):
    length_table = module("reading").length_table
    short = errors(est_ga=[80.0], equiformer=[60.0])
    assert length_table(short) == []
    long = [{**row, "seconds": "1200", "epochs": "40", "test_mae": "40"} for row in short[:1]]
    head, _, line = length_table(short + long)
    # One model alone has two lengths: four times the epochs, half the error.
    assert head.count("exponent") == 1
    assert long[0]["model"] == "est_ga"
    assert "80 (10) to 40 (40) | -0.50 |" in line


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


def queue(study, tmp_path, script, seconds: float, gpus, ahead=False, **changes):
    settings = module("training").Settings(out=str(tmp_path / "out"), data="data", **changes)
    deadline = time.perf_counter() + seconds
    return module("queue").Queue(settings, script, gpus, deadline, overhead=0.0, ahead=ahead)


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
    lanes = queue(study, tmp_path, script, 60, [0, 1], per_gpu=2, ahead=True).lanes
    assert [lane.gpu for lane in lanes] == [0, 1, 0, 1]
    assert len({lane.lock for lane in lanes}) == 4


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


def test_the_next_one_is_started_ahead_and_waits(study, tmp_path, script):
    results = {}
    made = queue(study, tmp_path, script, 60, [None], ahead=True)
    wanted = trainings("alpha", "mu", "gap", "homo", seconds=0.1)
    failed, left = made.run(wanted, lambda t, result: results.update({t.target: result}))
    assert [one.target for one in failed] == ["mu"]
    assert left == []
    assert list(results) == ["alpha", "gap", "homo"]
    for before, after in pairwise(results.values()):
        # Started while the other one trained, not before its turn; trained when it had ended.
        assert before["began"] < after["started"] < before["ended"] <= after["began"]
    # Their 0.8 s without the 0.1 s of training, and without those of waiting.
    assert 0.6 < made.beside < min(r["ended"] - r["started"] for r in [*results.values()][1:])


def test_with_several_gpus_each_has_one_ahead(study, tmp_path, script, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    results = {}
    made = queue(study, tmp_path, script, 60, [0, 1], ahead=True)
    wanted = trainings("alpha", "gap", "homo", "lumo", seconds=0.1)
    assert made.run(wanted, lambda t, r: results.update({t.target: r})) == ([], [])
    assert results["alpha"]["gpu"] != results["gap"]["gpu"]
    for gpu in ("4", "7"):
        first, second = sorted(
            (r for r in results.values() if r["gpu"] == gpu), key=lambda r: r["began"]
        )
        assert second["started"] < first["ended"] <= second["began"]
    begun = [results[one.target]["started"] for one in wanted]
    assert max(begun[:2]) < min(begun[2:])


def test_the_time_of_the_one_in_front_counts(study, tmp_path, script):
    results = {}
    made = queue(study, tmp_path, script, 5, [None], ahead=True)
    # Either fits alone; both do not: the first would train for 3 s as far as the queue can know.
    wanted = trainings("alpha", "gap", seconds=3.0)
    failed, left = made.run(wanted, lambda t, result: results.update({t.target: result}))
    assert (failed, [one.target for one in left]) == ([], ["gap"])
    assert list(results) == ["alpha"]


def test_what_waits_ends_with_the_time_and_never_trains(study, tmp_path, script):
    made = queue(study, tmp_path, script, 3, [None], ahead=True)
    wanted = trainings("r2", "gap", "homo", seconds=0.1)
    failed, left = made.run(wanted, lambda *_: pytest.fail("nothing ends by itself"))
    assert (failed, [one.target for one in left]) == ([], ["r2", "gap", "homo"])
    assert not list((tmp_path / "out" / "jobs").glob("*.result"))


def test_a_turn_ends_with_its_process_even_if_a_worker_lives_on(study, tmp_path):
    path = tmp_path / "gpu0.lock"
    mine = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.lockf(mine, fcntl.LOCK_EX)
    process = subprocess.Popen(
        [sys.executable, "-c", TURN, str(path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(study.__file__).parent)},
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        assert not select.select([process.stdout], [], [], 0.5)[0]
        fcntl.lockf(mine, fcntl.LOCK_UN)
        assert process.stdout.readline() == b"mine\n"
        number, waited = path.read_text().split()
        assert number == str(process.pid)
        assert 0.4 < float(waited) < 30
        mine = os.open(path, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.kill()
        process.wait()
        fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its child is there still.
        os.killpg(process.pid, 0)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        os.close(mine)


@pytest.mark.slow
def test_a_training_that_is_ahead_takes_no_step_before_its_turn(study, tmp_path):
    from est_ocp.data import write_qm9

    write_qm9(tmp_path / "data", "subset")
    module_ = module("training")
    settings = module_.Settings(
        out=str(tmp_path), data=str(tmp_path / "data"), batch_size=32, loader_workers=1,
        untimed_steps=1, evaluations=1, eval_batches=1, overrides=["log_every=1"],
    )  # fmt: skip
    training = module_.Training("schnet", "alpha", 0, 1.0)
    job, lock = tmp_path / "job.json", tmp_path / "cpu.lock"
    content = {"training": asdict(training), "settings": asdict(settings), "turn": str(lock)}
    job.write_text(json.dumps(content))
    mine = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.lockf(mine, fcntl.LOCK_EX)
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, study.__file__, "--out", str(tmp_path), "--worker", str(job)],
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        limit = time.monotonic() + 120
        while "on_train_start" not in log.read_text() and time.monotonic() < limit:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        time.sleep(3)
        metrics = tmp_path / "runs" / training.name / "metrics.jsonl"
        assert not metrics.exists() or '"train"' not in metrics.read_text()
        assert process.poll() is None
        os.close(mine)
        assert process.wait(120) == 0, log.read_text()
    finally:
        process.kill()
    assert '"train"' in metrics.read_text()
    (row,) = json.loads(job.with_suffix(".result").read_text())["rows"]
    # Waiting is no training.
    assert 1 <= row["train_seconds"] < 3
    assert row["all_seconds"] > 3


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
