"""QM9 at equal time on GPUs: hosts, the same hosts with EST's update, and peers.

    est-ocp data qm9 --out data/qm9
    python scripts/studies/qm9.py --data data/qm9 --out runs/qm9-study --page docs/results/qm9 \
        --targets alpha gap homo mu U0 Cv --seconds 420 --lrs 2.5e-4 5e-4 1e-3 \
        --cuda-graphs training --minutes 60

Each model trains for the same time on each target through fairchem's trainer, with the settings of
configs/qm9/ but for optim=qm9_short. Trainings are processes, one at a time on every GPU. Results
are written as they come: the same command again goes on with what is missing, and a training of
``--pause-after`` where it paused. One that fails is reported and left out; ``--smoke`` tries
everything on the embedded molecules.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from qm9study import report
from qm9study.models import LABELS, USUAL
from qm9study.pack import pack, pack_runs, unpack_runs
from qm9study.queue import OVERHEAD, Queue
from qm9study.tables import Tables
from qm9study.training import Settings, Training, run

from est_ocp.qm9_targets import ALL, TARGETS

#: What --smoke sets besides the embedded molecules.
SMOKE = ["log_every=1"]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--data", type=Path, help="folder that `est-ocp data qm9` wrote")
    parser.add_argument("--page", type=Path, help="folder of CSV, figure, page (default: --out)")
    what = parser.add_argument_group("what is trained")
    what.add_argument("--models", nargs="+", choices=list(LABELS), default=list(USUAL))
    what.add_argument("--targets", nargs="+", choices=[*TARGETS, ALL], default=["alpha"])
    what.add_argument("--seconds", type=float, default=420.0, help="of each training")
    what.add_argument("--seeds", type=int, default=1, help="trainings of each model and target")
    what.add_argument("--batch-size", type=int, default=Settings.batch_size)
    what.add_argument("--lrs", nargs="+", type=float, default=[], help="peak learning rates to try")
    what.add_argument("--lr-seconds", type=float, default=60.0, help="of each of their trainings")
    what.add_argument("--lr-target", choices=[*TARGETS, ALL], help="default: the first target")
    what.add_argument("--evaluations", type=int, default=Settings.evaluations, help="of each")
    what.add_argument("--eval-batches", type=int, help="of 500 molecules (default: all)")
    how = parser.add_argument_group("how")
    how.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    how.add_argument("--gpus", nargs="+", type=int, help="their numbers (default: all)")
    how.add_argument("--per-gpu", type=int, default=1, help="trainings at once on one GPU")
    how.add_argument("--ahead", action="store_true", help="prepare the next training meanwhile")
    how.add_argument("--loader-workers", type=int, default=Settings.loader_workers)
    how.add_argument("--compile", choices=("never", "training"), default="never")
    how.add_argument("--cuda-graphs", choices=("never", "training"), default="never")
    how.add_argument("--bf16", action="store_true", help="autocast (default: TF32)")
    how.add_argument("--untimed-steps", type=int, default=Settings.untimed_steps)
    how.add_argument("--minutes", type=float, default=1e6, help="end before this time is over")
    how.add_argument("--pause-after", type=float, help="seconds of a training in one call")
    how.add_argument("--overhead", type=float, default=OVERHEAD, help="seconds beside training")
    how.add_argument("--in-process", action="store_true", help="not one process a training")
    how.add_argument("--report", action="store_true", help="train nothing, write the page")
    how.add_argument("--smoke", action="store_true", help="seconds on the embedded molecules")
    how.add_argument("--pack", type=Path, help="write tables, page and logs into this .tar.gz")
    how.add_argument("--pack-paused", type=Path, help="write paused trainings into this .tar.gz")
    how.add_argument("--continue-from", type=Path, help="a file of --pack-paused")
    how.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of every training")
    return parser.parse_args(argv)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Fill in what the options leave open."""
    device = arguments.device
    if device is None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    extra = tuple(arguments.overrides)
    workers, data, untimed = arguments.loader_workers, arguments.data, arguments.untimed_steps
    if arguments.smoke:
        from est_ocp.data import write_qm9

        data, device, workers, untimed = arguments.out / "data", "cpu", 0, 1
        write_qm9(data, "subset")
        extra = (*SMOKE, *extra)
    elif data is None:
        raise SystemExit("name --data, the folder that `est-ocp data qm9` wrote")
    return Settings(
        out=str(arguments.out),
        data=str(data),
        batch_size=arguments.batch_size,
        device=device,
        loader_workers=workers,
        compile_layers=arguments.compile,
        cuda_graphs=arguments.cuda_graphs,
        bf16=arguments.bf16,
        untimed_steps=untimed,
        evaluations=arguments.evaluations,
        eval_batches=arguments.eval_batches,
        pause_after=arguments.pause_after,
        per_gpu=arguments.per_gpu,
        overrides=extra,
    )


def main(argv: list[str] | None = None) -> int:
    """Train what is missing, then write the page; 1 if something failed."""
    arguments = parse(argv)
    if arguments.worker:
        job = json.loads(Path(arguments.worker).read_text())
        result = run(Training(**job["training"]), Settings(**job["settings"]), job["turn"])
        file = Path(arguments.worker).with_suffix(".result")
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(result))
        os.replace(partial, file)
        return 0
    page = arguments.page or arguments.out
    study = Study(arguments, page)
    if not arguments.report:
        words = argv if argv is not None else sys.argv[1:]
        report.note_command(page, shlex.join(["python", "scripts/studies/qm9.py", *words]))
        study.train()
    if Tables(page).trainings:
        print(report.write_page(page))
    if arguments.pack:
        print(f"{arguments.pack}: {pack(arguments.pack, page, arguments.out) / 2**20:.1f} MiB")
    if arguments.pack_paused:
        size = pack_runs(arguments.pack_paused, arguments.out, study.paused())
        print(f"{arguments.pack_paused}: {size / 2**20:.1f} MiB, {', '.join(study.paused())}")
    for training in study.failed:
        print(f"failed: {training.name}", file=sys.stderr)
    return 1 if study.failed else 0


class Study:
    """The trainings of one call.

    Parameters
    ----------
    arguments : Namespace
    page : Path
        Folder of the CSV files.
    """

    def __init__(self, arguments: argparse.Namespace, page: Path) -> None:
        self.arguments = arguments
        self.tables = Tables(page)
        self.failed: list[Training] = []
        self.left: list[Training] = []
        self.deadline = time.perf_counter() + 60 * arguments.minutes

    def sweep(self) -> list[Training]:
        """Short trainings with several learning rates."""
        a = self.arguments
        target = a.lr_target or a.targets[0]
        return [
            Training(model, target, 0, a.lr_seconds, rate, sweep=True)
            for rate, model in itertools.product(a.lrs, a.models)
        ]

    def compared(self) -> list[Training]:
        """The trainings of the tables, each with its model's best learning rate."""
        a = self.arguments
        rates = {model: self.tables.best_rate(model) for model in a.models}
        return [
            Training(model, target, seed, a.seconds, rates[model])
            for seed, target, model in itertools.product(range(a.seeds), a.targets, a.models)
        ]

    def train(self) -> None:
        """Train what the CSV files do not hold, the sweep first."""
        settings = settings_of(self.arguments)
        if self.arguments.continue_from:
            names = unpack_runs(self.arguments.continue_from, self.arguments.out)
            print(f"to go on with: {', '.join(names) or 'nothing new'}", flush=True)
        self._train(self.sweep(), settings)
        unswept = {one.model for one in self.left}
        compared = self.compared()
        # Without its learning rate, a model waits for the next call.
        self.left += [one for one in compared if one.model in unswept]
        self._train([one for one in compared if one.model not in unswept], settings)

    def paused(self) -> list[str]:
        """Names of the runs that are to go on in a later call."""
        runs, done = self.arguments.out / "runs", self.tables.done()
        names = {one.name for one in (*self.sweep(), *self.compared()) if one.key not in done}
        return sorted(name for name in names if (runs / name / "checkpoints" / "final").is_dir())

    def _train(self, trainings: list[Training], settings: Settings) -> None:
        done = self.tables.done()
        for training in trainings:
            if training.key in done:
                print(f"== {training.name}: there already", flush=True)
        missing = [training for training in trainings if training.key not in done]
        if self.arguments.in_process:
            for training in missing:
                result = run(training, settings)
                if "paused" in result:
                    self.left.append(training)
                else:
                    self._keep(training, result)
            return
        queue = Queue(
            settings,
            Path(__file__),
            self._gpus(settings),
            self.deadline,
            self.arguments.overhead,
            self.arguments.ahead,
        )
        failed, left = queue.run(missing, self._keep)
        self.failed += failed
        self.left += left

    def _gpus(self, settings: Settings) -> list[int | None]:
        if settings.device == "cpu":
            return [None]
        if self.arguments.gpus:
            return list(self.arguments.gpus)
        import torch

        return list(range(torch.cuda.device_count()))

    def _keep(self, training: Training, result: dict[str, Any]) -> None:
        self.tables.add(training, result)
        for row in result["rows"]:
            name, error = ("val", row["val_mae"]) if training.sweep else ("test", row["test_mae"])
            print(
                f"   {training.name}: {row['target']} {name} MAE {error:.4g} {row['unit']}, "
                f"{row['epochs']} epochs, {row['molecules_per_second']} molecules/s, "
                f"{row['all_seconds']} s in all",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
