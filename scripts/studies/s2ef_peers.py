"""S2EF beside its peers at equal GPU time: the host, the host with EST's update, EST, and others.

    python scripts/studies/s2ef_peers.py --frames frames.npz --out runs/peers \
        --page docs/results/s2ef_peers.md --seconds 150 --minutes 9.5

First a few learning rates for each model, then full trainings at the best one, each on a GPU of its
own. Results are written as they come; at the end of ``--minutes`` what runs is ended, and the same
command goes on with what is missing. A training that fails is reported and left out.
``--variants`` adds changes of the EST update, ``--report`` writes the page alone, and ``--smoke``
tries everything with tiny models on the embedded frames.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import signal
import sys
import tarfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from s2efpeers.data import load_frames, write_data_config, write_lmdbs
from s2efpeers.gpu_queue import GpuQueue, Outcome
from s2efpeers.models import LABELS, VARIANTS, base_of
from s2efpeers.page import write_page
from s2efpeers.plan import Plan
from s2efpeers.study import Study
from s2efpeers.training import Settings, Training, run

#: What --smoke sets: the smallest of each model.
SMOKE = ["log_every=1", "cluster.num_workers=0"]
SMOKE_MODELS = {
    "eqv2": ["model.backbone.num_layers=1", "model.backbone.lmax=1", "model.backbone.mmax=1"],
    "est": [
        "model.backbone.num_layers=1", "model.backbone.lmax=1", "model.backbone.channels=16",
        "model.backbone.message.hidden_channels=8",
    ],
    "esen": [
        "model.backbone.num_layers=1", "model.backbone.lmax=1", "model.backbone.mmax=1",
        "model.backbone.sphere_channels=16", "model.backbone.hidden_channels=8",
    ],
    "escaip": ["model.backbone.num_layers=1"],
}  # fmt: skip
SMOKE_MODELS["eqv2_est"] = SMOKE_MODELS["eqv2"]
#: What goes into --pack, and what continues a study elsewhere.
PACKED = ("*.csv", "settings.json", "origin.json", "*.md", "*.png", "jobs/*.log")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--frames", type=Path, help="npz of labelled frames with five splits")
    parser.add_argument("--data", type=Path, help="folder of their LMDBs (default: made in --out)")
    parser.add_argument("--page", type=Path, help="Markdown page (default: in --out)")
    parser.add_argument("--models", nargs="+", choices=list(LABELS), default=list(LABELS))
    parser.add_argument("--variants", nargs="*", choices=[*VARIANTS, "all"], default=[])
    parser.add_argument("--seconds", type=float, default=Settings.seconds, help="of each training")
    parser.add_argument("--sweep-seconds", type=float, default=Settings.sweep_seconds)
    parser.add_argument("--rates", nargs="+", type=float, default=[3e-4, 1e-3, 3e-3])
    parser.add_argument(
        "--rates-of", nargs="+", action="append", default=[], metavar=("MODEL", "RATE"),
        help="other rates of a model; may be repeated",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=2, help="of the host and of its hybrid")
    parser.add_argument("--peer-seeds", type=int, default=1, help="of the other models")
    parser.add_argument("--batch-size", type=int, default=Settings.batch_size)
    parser.add_argument("--evaluations", type=int, default=Settings.evaluations)
    parser.add_argument("--untimed-steps", type=int, default=Settings.untimed_steps)
    parser.add_argument("--loader-workers", type=int, default=Settings.loader_workers)
    parser.add_argument("--gpus", nargs="+", help="numbers of the GPUs (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--cuda-graphs", choices=("never", "inference", "training", "always"))
    parser.add_argument("--compile", choices=("never", "training", "always"))
    parser.add_argument(
        "--ahead", action="store_true", help="the next process waits ready for each GPU"
    )
    parser.add_argument("--minutes", type=float, default=1e6, help="end after this time")
    parser.add_argument("--retry", action="store_true", help="try again what failed")
    parser.add_argument("--in-process", action="store_true", help="not one process a training")
    parser.add_argument("--report", action="store_true", help="train nothing, write the page")
    parser.add_argument("--smoke", action="store_true", help="tiny models, embedded frames, CPU")
    parser.add_argument("--pack", type=Path, help="put all results into this .tar.gz")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of every training")
    arguments = parser.parse_args(argv)
    try:
        arguments.own_rates = {
            model: [float(rate) for rate in rates] for model, *rates in arguments.rates_of
        }
    except ValueError as error:
        parser.error(f"--rates-of takes a model and its learning rates: {error}")
    for model, rates in arguments.own_rates.items():
        if model not in LABELS or not rates:
            parser.error(f"--rates-of {model}: give one of {', '.join(LABELS)} and its rates")
    if "all" in arguments.variants:
        arguments.variants = list(VARIANTS)
    if arguments.smoke:
        arguments.rates, arguments.seeds, arguments.in_process = [1e-3], 1, True
        arguments.own_rates = {}
        arguments.seconds, arguments.evaluations, arguments.untimed_steps = 0.5, 2, 1
        arguments.batch_size, arguments.device, arguments.loader_workers = 4, "cpu", 0
    return arguments


def fast_words(arguments: argparse.Namespace) -> list[str]:
    """Overrides of the fast paths that were asked for, the surest first."""
    words = []
    if arguments.compile:
        words.append(f"model.backbone.compile_layers={arguments.compile}")
    if arguments.cuda_graphs:
        words.append(f"model.cuda_graphs={arguments.cuda_graphs}")
    return words


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Fill in what the options leave open."""
    device = arguments.device
    if device is None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Settings(
        out=str(arguments.out.resolve()),
        seconds=arguments.seconds,
        sweep_seconds=arguments.sweep_seconds,
        batch_size=arguments.batch_size,
        evaluations=arguments.evaluations,
        untimed_steps=arguments.untimed_steps,
        device=device,
        loader_workers=arguments.loader_workers,
        overrides=tuple([*(SMOKE if arguments.smoke else []), *arguments.overrides]),
    )


def check_settings(out: Path, settings: Settings, frames: str) -> None:
    """Refuse to mix results of different settings in one folder."""
    same = {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        # Where and how fast it runs does not matter.
        if name not in ("out", "loader_workers", "eval_batch_size")
    } | {"frames": frames}
    file = out / "settings.json"
    text = json.dumps(same, indent=2, default=list) + "\n"
    if file.is_file() and file.read_text() != text:
        sys.exit(f"{out} holds results of other settings ({file}); choose another --out")
    file.write_text(text)


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, until the time is over, and write the page; 1 if something failed."""
    started = time.time()
    arguments = parse(argv)
    if arguments.worker:
        job = json.loads(arguments.worker.read_text())
        training = Training(**job["training"] | {"fast": tuple(job["training"]["fast"])})
        result = run(training, Settings(**job["settings"]), job["turn"])
        arguments.worker.with_suffix(".result").write_text(json.dumps(result))
        return 0
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    page = arguments.page or out / "s2ef_peers.md"
    failed: list[Training] = []
    if not arguments.report:
        # So that an end from outside also ends the trainings.
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            failed = train_missing(arguments, argv, out, started + 60 * arguments.minutes)
        finally:
            signal.signal(signal.SIGTERM, before)
    if (out / "origin.json").is_file():
        write_page(page, out)
        print(f"page: {page}")
    pack(arguments, out)
    for training in failed:
        print(f"failed: {training.name}", file=sys.stderr)
    return 1 if failed else 0


def train_missing(
    arguments: argparse.Namespace, argv: list[str] | None, out: Path, deadline: float
) -> list[Training]:
    """Train what the CSV files do not hold; return what failed."""
    frames = load_frames(arguments.frames, arguments.smoke)
    elements = tuple(int(z) for z in np.unique(frames.of_split("train").z))
    settings = dataclasses.replace(settings_of(arguments), elements=elements)
    check_settings(out, settings, "embedded" if arguments.smoke else str(arguments.frames.name))
    folder = (arguments.data or out / "data").resolve()
    write_lmdbs(frames, folder)
    origin = out / "origin.json"
    known = json.loads(origin.read_text()) if origin.is_file() else {"commands": [], "machine": {}}
    known["data"] = write_data_config(frames, folder, out)
    command = shown_command(arguments, argv if argv is not None else sys.argv[1:])
    plan = Plan(
        arguments.models, arguments.rates, arguments.seeds, arguments.peer_seeds,
        arguments.variants, arguments.own_rates,
    )  # fmt: skip
    study = Study(out, plan, fast_words(arguments), arguments.retry)
    for outcome in outcomes(arguments, settings, study, deadline):
        study.keep(outcome)
        if outcome.result is not None:
            known["machine"] = outcome.result["machine"]
            if command not in known["commands"]:
                known["commands"].append(command)
            origin.write_text(json.dumps(known, indent=2) + "\n")
            pack(arguments, out)
    print(f"{study.ran} ran, {len(study.wanted())} are missing, {len(study.failed)} failed")
    return study.failed


def outcomes(
    arguments: argparse.Namespace, settings: Settings, study: Study, deadline: float
) -> Any:
    """Yield outcomes, from processes on GPUs or from this process."""
    if not arguments.in_process:
        places = devices(arguments, settings)
        queue = GpuQueue(Path(__file__).resolve(), settings, places, deadline, arguments.ahead)
        yield from queue.run(lambda left: study.take(left, settings))
        for training in queue.cut:
            print(f"   {training.name}: ended, no time left", flush=True)
        return
    while (training := study.take(deadline - time.time(), settings)) is not None:
        extra = SMOKE_MODELS[base_of(training.model)] if arguments.smoke else []
        own = dataclasses.replace(settings, overrides=(*settings.overrides, *extra))
        try:
            yield Outcome(training, run(training, own))
        except Exception:
            yield Outcome(training, None, traceback.format_exc())


def devices(arguments: argparse.Namespace, settings: Settings) -> list[str]:
    """Values of CUDA_VISIBLE_DEVICES, one a process; one process on a CPU."""
    if settings.device == "cpu":
        return [""]
    if arguments.gpus:
        return arguments.gpus
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return visible.split(",")
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def shown_command(arguments: argparse.Namespace, argv: list[str]) -> str:
    """Return the command for the page, with names in place of this machine's paths."""
    paths = (arguments.frames, arguments.data, arguments.out, arguments.page, arguments.pack)
    names = {str(path): path.name for path in paths if path}
    words = [names.get(word, word) for word in argv]
    return shlex.join(["python", "scripts/studies/s2ef_peers.py", *words])


def pack(arguments: argparse.Namespace, out: Path) -> None:
    """Put all results into one file, whole at any time."""
    if not arguments.pack:
        return
    new = arguments.pack.with_name(f"{arguments.pack.name}.new")
    with tarfile.open(new, "w:gz") as archive:
        for pattern in PACKED:
            for file in sorted(out.glob(pattern)):
                archive.add(file, file.relative_to(out))
    new.replace(arguments.pack)


if __name__ == "__main__":
    sys.exit(main())
