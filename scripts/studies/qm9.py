"""QM9 at equal time on one GPU: hosts, the same hosts with EST's update, and peers.

    est-ocp data qm9 --out data/qm9
    python scripts/studies/qm9.py --data data/qm9 --out runs/qm9-study --page docs/results/qm9 \
        --targets alpha gap homo mu U0 Cv --seconds 420 --compile training

Each model trains for the same time on each target through fairchem's trainer, with the settings of
configs/qm9/ but for optim=qm9_short. Results are written as they come: the same command again goes
on with what is missing. One that fails is reported and left out; ``--smoke`` tries everything on
the embedded molecules with two tiny models.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from csv_rows import append, read
from qm9study import report
from qm9study.training import LABELS, Settings, Training, run

from est_ocp.qm9_targets import TARGETS

#: What --smoke sets besides the embedded molecules.
SMOKE = ["log_every=1", "untimed_steps=1"]
#: Lines of a failed training's log that are shown.
TAIL = 5
MODELS = [model for model in LABELS if model != "debug"]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--data", type=Path, help="folder that `est-ocp data qm9` wrote")
    parser.add_argument("--page", type=Path, help="folder of CSV, figure, page (default: --out)")
    parser.add_argument("--models", nargs="+", choices=list(LABELS), default=MODELS)
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=["alpha"])
    parser.add_argument("--seconds", type=float, default=Settings.seconds, help="of each training")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each model and target")
    parser.add_argument("--batch-size", type=int, default=Settings.batch_size)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--loader-workers", type=int, default=Settings.loader_workers)
    parser.add_argument("--compile", choices=("never", "training"), default="never")
    parser.add_argument("--evaluations", type=int, default=Settings.evaluations, help="of each")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin nothing after this time")
    parser.add_argument("--in-process", action="store_true", help="not one process a training")
    parser.add_argument("--report", action="store_true", help="train nothing, write the page")
    parser.add_argument("--smoke", action="store_true", help="seconds on the embedded molecules")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of every training")
    return parser.parse_args(argv)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Fill in what the options leave open."""
    device = arguments.device
    if device is None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    extra = tuple(arguments.overrides)
    workers, data = arguments.loader_workers, arguments.data
    if arguments.smoke:
        from est_ocp.data import write_qm9

        data, device, workers = arguments.out / "data", "cpu", 0
        write_qm9(data, "subset")
        extra = (*SMOKE, *extra)
    elif data is None:
        raise SystemExit("name --data, the folder that `est-ocp data qm9` wrote")
    return Settings(
        out=str(arguments.out),
        data=str(data),
        seconds=arguments.seconds,
        batch_size=arguments.batch_size,
        device=device,
        loader_workers=workers,
        compile_layers=arguments.compile,
        evaluations=arguments.evaluations,
        overrides=extra,
    )


def main(argv: list[str] | None = None) -> int:
    """Train what is missing, then write the page; 1 if something failed."""
    arguments = parse(argv)
    if arguments.worker:
        job = json.loads(Path(arguments.worker).read_text())
        result = run(Training(**job["training"]), Settings(**job["settings"]))
        Path(arguments.worker).with_suffix(".result").write_text(json.dumps(result))
        return 0
    page = arguments.page or arguments.out
    failed = []
    if not arguments.report:
        words = argv if argv is not None else sys.argv[1:]
        report.note_command(page, shlex.join(["python", "scripts/studies/qm9.py", *words]))
        failed = train_missing(arguments, page)
    if read(page / "trainings.csv"):
        print(report.write_page(page))
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


def train_missing(arguments: argparse.Namespace, page: Path) -> list[str]:
    """Train what the page's CSV files do not hold; return the names of what failed."""
    started = time.perf_counter()
    settings = settings_of(arguments)
    done = {
        (row["target"], row["model"], int(row["seed"])): row for row in read(page / "trainings.csv")
    }
    failed = []
    wanted = itertools.product(range(arguments.seeds), arguments.targets, arguments.models)
    for seed, target, model in wanted:
        training = Training(model, target, seed)
        if (target, model, seed) in done:
            seconds = done[target, model, seed]["train_seconds"]
            print(f"== {training.name}: there already, {seconds} s of training", flush=True)
            continue
        if (time.perf_counter() - started) / 60 > arguments.minutes:
            print(f"== {training.name}: left for later", flush=True)
            continue
        print(f"== {training.name}", flush=True)
        result = _result(training, settings, arguments)
        if result is None:
            failed.append(training.name)
            continue
        append(page / "trainings.csv", report.TRAININGS, [result["row"]])
        append(page / "curves.csv", report.CURVE, result["curve"])
        row = result["row"]
        print(
            f"   test MAE {row['test_mae']:.4g} {row['unit']}, {row['epochs']} epochs, "
            f"{row['all_seconds']} s in all",
            flush=True,
        )
    return failed


def _result(training: Training, settings: Settings, arguments: argparse.Namespace) -> dict | None:
    """Run one training; None if it failed."""
    if arguments.in_process:
        return run(training, settings)
    folder = arguments.out / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    job = folder / f"{training.name}.json"
    job.write_text(json.dumps({"training": asdict(training), "settings": asdict(settings)}))
    command = [sys.executable, __file__, "--out", str(arguments.out), "--worker", str(job)]
    with job.with_suffix(".log").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        end = job.with_suffix(".log").read_text().splitlines()[-TAIL:]
        print("\n".join([f"   failed, see {job.with_suffix('.log')}", *end]), flush=True)
        return None
    return json.loads(job.with_suffix(".result").read_text())


if __name__ == "__main__":
    sys.exit(main())
