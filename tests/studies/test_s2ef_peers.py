"""The study of S2EF beside its peers, reduced: its plan, its queue, its claims, its page."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from est_ocp.cli.config import instantiate, resolve
from est_ocp.evaluation import SplitPredictions

#: Largest difference of any model's parameters to the host's.
SIZES = 0.10


@pytest.fixture(scope="module")
def study(parts):
    return parts("s2ef_peers")


@pytest.fixture(scope="module")
def report(parts):
    return parts("s2efpeers.report")


@pytest.fixture(scope="module")
def plans(parts):
    return parts("s2efpeers.plan")


@pytest.fixture(scope="module")
def training(parts):
    return parts("s2efpeers.training")


def curve(model, energy, forces, *, stage="main", lr="0.001", seed="0", split="mean"):
    """One row of ``curves.csv``."""
    row = {"stage": stage, "model": model, "lr": lr, "seed": seed, "seconds": "9", "step": "5"}
    row |= {"split": split, "energy_mae": str(energy), "forces_mae": str(forces)}
    return row | {"forces_cosine": "0.5", "ewt": "0.1", "efwt": "0.01", "efwt10": "0.2"}


def test_models_are_of_one_size(study, training, tmp_path):
    """The whole models, heads included, from the configs."""
    sizes = {}
    for model in study.LABELS:
        config = training.entry_config(
            training.Training("main", model, 1e-3, 0), training.Settings(str(tmp_path))
        )
        words = [f"model=s2ef_peer_{model}", "data=demo_s2ef", "steps=1", "epochs=null"]
        made = instantiate(resolve(config, words).runner.train_eval_unit.model, model)
        sizes[model] = sum(p.numel() for p in made.parameters())
    for model, size in sizes.items():
        assert abs(size / sizes["eqv2"] - 1) < SIZES, model


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_the_variants_are_settings_of_the_model(parts, training, tmp_path, step):
    models = parts("s2efpeers.models")
    for name in list(models.VARIANTS)[::step]:
        job = training.Training("variant", name, 1e-3, 0)
        config = training.entry_config(job, training.Settings(str(tmp_path)))
        words = [*models.model_overrides(name), "data=demo_s2ef", "steps=1", "epochs=null"]
        words.append("model.backbone.num_layers=1")
        made = instantiate(resolve(config, words).runner.train_eval_unit.model, name)
        assert made.backbone.blocks[0].update.lmax == 3


def test_rates_come_first_and_a_failed_one_is_not_the_best(plans):
    plan = plans.Plan(["eqv2", "escaip"], [1e-4, 1e-3, 1e-2], seeds=2, peer_seeds=1)
    sweep = plan.sweep()
    assert [(t.model, t.lr) for t in sweep[:2]] == [("eqv2", 1e-3), ("escaip", 1e-3)]
    assert len(sweep) == 6
    rows = [
        curve("eqv2", 0.4, 0.1, stage="sweep", lr="0.0001", split="val_id"),
        curve("eqv2", 0.2, 0.1, stage="sweep", lr="0.001", split="val_id"),
        # Other splits do not count.
        curve("eqv2", 0.0, 0.0, stage="sweep", lr="0.0001", split="val_ood_ads"),
    ]
    assert plan.best_rates(rows, []) == {}
    best = plan.best_rates(rows, [("sweep", "eqv2", "0.01", "0")])
    assert best == {"eqv2": 1e-3}
    assert [(t.model, t.seed) for t in plan.trainings(best)] == [("eqv2", 0), ("eqv2", 1)]
    one = plans.Plan(["escaip"], [1e-3], seeds=2, peer_seeds=1)
    assert one.sweep() == []
    assert [t.seed for t in one.trainings(one.best_rates([], []))] == [0]


def test_a_model_may_have_rates_of_its_own(plans):
    plan = plans.Plan(
        ["eqv2", "escaip", "esen"], [1e-3, 1e-2], 1, 1,
        own_rates={"escaip": [1e-5, 1e-4, 1e-3], "esen": [3e-3]},
    )  # fmt: skip
    tried = [(t.model, t.lr) for t in plan.sweep()]
    assert tried == [
        ("eqv2", 1e-2), ("escaip", 1e-4), ("eqv2", 1e-3), ("escaip", 1e-5), ("escaip", 1e-3),
    ]  # fmt: skip
    # Trials of rates that are not asked for do not count.
    row = curve("escaip", 0.1, 0.1, stage="sweep", lr="0.01", split="val_id")
    rows = [row | {"lr": f"{rate:g}", "energy_mae": rate} for rate in (1e-2, 1e-3, 1e-4, 1e-5)]
    assert plan.best_rates(rows, []) == {"escaip": 1e-5, "esen": 3e-3}


def test_options_name_rates_of_models(study):
    words = ["--out", "x", "--rates-of", "escaip", "1e-4", "1e-3", "--rates-of", "est", "0.01"]
    own = study.parse(words).own_rates
    assert own == {"escaip": [1e-4, 1e-3], "est": [1e-2]}
    for bad in (["nequip", "1e-3"], ["est"], ["est", "fast"]):
        with pytest.raises(SystemExit):
            study.parse(["--out", "x", "--rates-of", *bad])


def test_no_claim_inside_the_noise(report):
    def rows(host, hybrid):
        return [
            curve(model, energy, 0.1, seed=str(seed))
            for model, values in (("eqv2", host), ("eqv2_est", hybrid))
            for seed, energy in enumerate(values)
        ]

    near = report.final(rows((0.20, 0.22), (0.19, 0.21)), "main")
    assert "inside the noise" in report.sentence(near, "eqv2", "eqv2_est", "energy_mae")
    far = report.final(rows((0.200, 0.201), (0.100, 0.101)), "main")
    assert "**lower** beyond" in report.sentence(far, "eqv2", "eqv2_est", "energy_mae")
    single = report.final(rows((0.2,), (0.1,)), "main")
    assert "nothing can be claimed" in report.sentence(single, "eqv2", "eqv2_est", "energy_mae")
    assert "Nothing can be said" in report.answer(rows((0.2,), (0.1,)))
    noisy = report.answer(rows((0.20, 0.30), (0.19, 0.21)))
    assert "in energies, not told apart from the host's" in noisy
    assert "in forces, as good as the host's own feed-forward within the noise" in noisy
    # Two freedoms: Student's t is 4.30.
    difference, least = report.compared(far, "eqv2", "eqv2_est", "energy_mae")
    logs = np.log([[0.200, 0.201], [0.100, 0.101]])
    assert difference == pytest.approx(logs[1].mean() - logs[0].mean())
    assert least == pytest.approx(4.3027 * math.sqrt(logs.var(axis=1, ddof=1).mean()), rel=1e-4)


def test_a_better_rate_found_later_replaces_the_earlier_trainings(report):
    rows = [curve("eqv2", e, 0.1, lr=lr) for e, lr in ((0.5, "0.001"), (0.2, "0.01"))]
    rows.append(curve("eqv2", 0.9, 0.1, stage="sweep", lr="0.001"))
    kept = report.newest(rows[:2], rows)
    assert [(row["stage"], row["lr"]) for row in kept] == [("main", "0.01"), ("sweep", "0.001")]


def test_metrics_of_a_split(parts):
    callbacks = parts("s2efpeers.callbacks")
    predictions = SplitPredictions(
        ids=np.array(["0", "1"]),
        energy=np.array([1.0, 2.1]),
        forces=np.array([[0.0, 0.0, 0.01], [9.0, 9.0, 9.0], [0.2, 0.0, 0.0]]),
        natoms=np.array([2, 1]),
        fixed=np.array([False, True, False]),
        energy_label=np.array([1.01, 2.0]),
        forces_label=np.zeros((3, 3)),
    )
    metrics = callbacks.split_metrics(predictions)
    assert (metrics["efwt"], metrics["efwt10"]) == (0.5, 1.0)
    assert metrics["forces_mae"] == pytest.approx(0.21 / 6)


def test_frames_of_unknown_elements_are_left_out(parts):
    place = OmegaConf.create({"metadata": {"log_dir": "logs", "results_dir": "results"}})
    curve = parts("s2efpeers.callbacks").SplitCurve(place, elements=[1, 8])
    part = {
        "ids": np.array(["0", "1", "2"]),
        "energy": np.array([1.0, 2.0, 3.0]),
        "forces": np.arange(15.0).reshape(5, 3),
        "natoms": np.array([2, 1, 2]),
        "fixed": np.array([False, True, False, True, False]),
        "energy_label": np.zeros(3),
        "forces_label": np.zeros((5, 3)),
        "numbers": np.array([1, 8, 8, 8, 79]),
    }
    curve.parts = {"val_id": [part], "val_ood_cat": [part | {"numbers": np.full(5, 79)}]}
    known = curve._known("val_id")
    assert known.energy.tolist() == [1.0, 2.0]
    assert known.natoms.tolist() == [2, 1]
    assert known.forces.tolist() == part["forces"][:3].tolist()
    assert known.fixed.tolist() == [False, True, False]
    assert curve._known("val_ood_cat") is None


def test_models_are_compared_by_known_elements_where_all_have_them(report):
    rows = [
        curve(model, energy, 0.1, seed=seed) | {"split": split}
        for model, factor in (("eqv2", 1.0), ("eqv2_est", 0.5))
        for seed in "01"
        for split, energy in (("mean", 1.0), ("known", factor * (0.2 + 0.001 * int(seed))))
    ]
    assert report.judged(report.final(rows, "main")) == "known"
    assert "is, in energies, better" in report.answer(rows)
    without = [row for row in rows if (row["seed"], row["split"]) != ("1", "known")]
    assert report.judged(report.final(without, "main")) == "mean"
    assert "better" not in report.answer(without)


def test_the_update_can_start_small(parts):
    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.update = torch.nn.ParameterDict(
                {"weight_out": torch.ones(3), "weight_in": torch.ones(3)}
            )

    unit = type("Unit", (), {"model": torch.nn.Sequential(Holder())})()
    parts("s2efpeers.callbacks").ScaleUpdates(0.1).on_train_start(None, unit)
    scaled = unit.model[0].update
    assert scaled["weight_out"].tolist() == pytest.approx([0.1] * 3)
    assert scaled["weight_in"].tolist() == [1.0] * 3


WORKER = """
import json, sys, time
from pathlib import Path
job = Path(sys.argv[sys.argv.index("--worker") + 1])
lr = json.loads(job.read_text())["training"]["lr"]
if lr < 0:
    sys.exit("boom")
time.sleep(lr)
job.with_suffix(".result").write_text(json.dumps({"lr": lr}))
"""


def test_the_queue_runs_reports_and_ends_in_time(parts, training, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    jobs = [training.Training("main", "eqv2", lr, 0) for lr in (0.01, -1.0, 60.0)]
    waiting = list(jobs)
    queue = parts("s2efpeers.gpu_queue").GpuQueue(
        script, training.Settings(str(tmp_path)), ["0", "1"], time.time() + 4
    )
    started = time.time()
    outcomes = {
        o.training.lr: o for o in queue.run(lambda left: waiting.pop(0) if waiting else None)
    }
    assert outcomes[0.01].result == {"lr": 0.01}
    assert outcomes[-1.0].result is None
    assert "boom" in outcomes[-1.0].error
    assert [t.lr for t in queue.cut] == [60.0]
    assert time.time() - started < 30


#: Writes down when it trained, as one whose turn it is.
AHEAD = """
import fcntl, json, os, sys, time
from pathlib import Path
job = Path(sys.argv[sys.argv.index("--worker") + 1])
started = time.time()
lock = os.open(json.loads(job.read_text())["turn"], os.O_RDWR)
fcntl.lockf(lock, fcntl.LOCK_EX)
os.ftruncate(lock, 0)
os.write(lock, f"{os.getpid()} {time.time() - started}".encode())
turn = time.time()
time.sleep(1.0)
job.with_suffix(".result").write_text(json.dumps([started, turn, time.time()]))
"""


def test_the_next_one_waits_ready_for_its_gpu(parts, training, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(AHEAD)
    waiting = [training.Training("main", "eqv2", lr, 0) for lr in (1.0, 2.0, 3.0)]
    settings = training.Settings(str(tmp_path), seconds=1.0)
    lefts = []

    def take(left):
        lefts.append(left)
        return waiting.pop(0) if waiting else None

    queue = parts("s2efpeers.gpu_queue").GpuQueue(
        script, settings, ["0"], time.time() + 60, ahead=True
    )
    spans = [outcome.result for outcome in queue.run(take)]
    for (_, turn, end), (started, next_turn, _) in itertools.pairwise(spans):
        assert turn < started < end <= next_turn
    # The second one has the time that the first one leaves.
    assert lefts[1] < lefts[0] - 0.5
    assert queue.cut == []
    waited = parts("gpu_turn").waited(str(tmp_path / "turns" / "0.lock"))
    assert 0.3 < waited < 1.5


def test_fast_paths_that_fail_are_left_out(parts, study, plans, training, tmp_path):
    queue = parts("s2efpeers.gpu_queue")
    plan = plans.Plan(["eqv2", "esen"], [1e-3], seeds=1, peer_seeds=1)
    fast = ["model.backbone.compile_layers=training", "model.cuda_graphs=always"]
    settings = training.Settings(str(tmp_path), seconds=10)
    made = study.Study(tmp_path, plan, fast, retry=False)
    # What cannot end in time is not begun.
    assert made.take(30, settings) is None
    first = made.take(1e4, settings)
    assert first.fast == tuple(fast)
    made.keep(queue.Outcome(first, None, "no such graph"))
    second = made.take(1e4, settings)
    assert (second.model, second.fast) == ("eqv2", tuple(fast[:1]))
    # The next call remembers, and models without fast paths ask for none.
    again = study.Study(tmp_path, plan, fast, retry=False)
    assert again.take(1e4, settings).fast == tuple(fast[:1])
    other = again.take(1e4, settings)
    assert (other.model, other.fast) == ("esen", ())
    again.keep(queue.Outcome(other, None, "loss is not finite"))
    assert [t.model for t in study.Study(tmp_path, plan, fast, retry=False).wanted()] == ["eqv2"]
    assert len(study.Study(tmp_path, plan, fast, retry=True).wanted()) == 2


def test_the_command_from_frames_to_page(study, report, tmp_path):
    out, pack = tmp_path / "out", tmp_path / "pack.tar.gz"
    arguments = ["--smoke", "--out", str(out), "--models", "esen", "--pack", str(pack)]
    assert study.main(arguments) == 0
    with open(out / "trainings.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["esen"]
    assert all(float(row["train_seconds"]) >= 0.5 for row in rows)
    with open(out / "curves.csv", newline="") as file:
        curves = list(csv.DictReader(file))
    assert {row["split"] for row in curves} == {*report.VALIDATION, "mean", "known"}
    last = report.final(curves, "main")["esen"]["0"]
    mean = np.mean([last[split]["energy_mae"] for split in report.VALIDATION])
    assert last["mean"]["energy_mae"] == pytest.approx(mean)
    page = (out / "s2ef_peers.md").read_text()
    assert f"| eSCN-MD / eSEN | {int(rows[0]['parameters']):,} |" in page
    assert "The host and its hybrid with EST's update have not both been trained yet." in page
    assert str(tmp_path) not in page
    assert (out / "s2ef_peers.png").stat().st_size > 10_000
    with tarfile.open(pack) as archive:
        assert {"trainings.csv", "curves.csv", "origin.json"} <= set(archive.getnames())

    # Again: nothing is left to train, and a hand-written section stays.
    (out / "s2ef_peers.md").write_text(page + "\n## Reading\n\nMine.\n")
    assert study.main(arguments) == 0
    assert (out / "s2ef_peers.md").read_text().endswith("## Reading\n\nMine.\n")
    with open(out / "trainings.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 1
    settings = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(json.dumps(settings | {"batch_size": 1}))
    with pytest.raises(SystemExit, match="other settings"):
        study.main(arguments)


def test_results_has_a_page_for_every_claim():
    """The table of claims: its links lead somewhere, its verdicts are of four kinds."""
    folder = Path(__file__).parents[2] / "docs" / "results"
    text = (folder / "README.md").read_text()
    links = [part.split(")", 1)[0] for part in text.split("](")[1:]]
    assert len(links) > 10
    for link in links:
        assert (folder / link.split("#", 1)[0]).exists(), link
    rows = [line.split("|") for line in text.splitlines() if line.startswith("|")][2:]
    matches = [re.match("(reproduced|partly|not tested|not)\\b", row[4].strip()) for row in rows]
    assert None not in matches
    assert {match[0] for match in matches} == {"reproduced", "partly", "not tested", "not"}
    claimed = " ".join(row[1] for row in rows)
    for number in range(1, 14):
        # Tables 9, 10 and 12 are settings and claim nothing.
        assert number in (9, 10, 12) or f"Table {number}" in claimed
