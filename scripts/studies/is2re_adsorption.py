"""IS2RE on real DFT: adsorption energies of Xu and Kitchin (2014), three models at equal epochs.

    python scripts/studies/is2re_adsorption.py --data dft_adsorption.json --out results/adsorption

From ideal, unrelaxed structures built by this script the models predict DFT adsorption energies;
one metal (or with ``--by adsorbate`` one adsorbate) is left out at a time. Every training goes
through fairchem's trainer with ``train_is2re`` and an LMDB in OC20's IS2RE format. Results are
written as they come: the same command again goes on with what is missing, and ``--minutes 0``
only writes the page anew.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
from adsorption import report, training
from adsorption.page import write_page
from adsorption.pool import run_all
from adsorption.structures import Entry, read_entries, record, site_after_relaxation
from adsorption.training import MODELS, Settings, Training


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="JSON of structures and energies")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--page", type=Path, help="Markdown page (default: in --out)")
    parser.add_argument("--by", choices=("metal", "adsorbate"), default="metal")
    parser.add_argument("--folds", nargs="*", help="groups to leave out (default: each in turn)")
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each model and fold")
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--batch-size", type=int, default=Settings.batch_size)
    parser.add_argument("--lr", type=float, default=Settings.lr)
    parser.add_argument(
        "--jobs", type=int, default=1, help="trainings at a time; 0: in this process"
    )
    parser.add_argument("--minutes", type=float, default=1e6, help="time after which to stop")
    parser.add_argument("--structures", type=int, help="only so many, to try it out")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--loader-workers", type=int, help="default: 1 with a GPU, else 0")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of every training")
    return parser.parse_args(argv)


def folds_of(entries: list[Entry], by: str) -> dict[str, tuple[list[int], list[int]]]:
    """Return for each group left out the numbers of the training and of the test entries."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, entry in enumerate(entries):
        groups[getattr(entry, by)].append(number)
    return {
        group: ([i for i in range(len(entries)) if i not in set(test)], test)
        for group, test in groups.items()
    }


def mean_predictor(entries: list[Entry], train: list[int], test: list[int]) -> list[float]:
    """Predict the mean training energy of the same adsorbate, or of all where it is new."""
    known: dict[str, list[float]] = defaultdict(list)
    for i in train:
        known[entries[i].adsorbate].append(entries[i].energy)
    overall = float(np.mean([entries[i].energy for i in train]))
    means = {adsorbate: float(np.mean(values)) for adsorbate, values in known.items()}
    return [means.get(entries[i].adsorbate, overall) for i in test]


def write_fold(
    out: Path, by: str, held_out: str, entries: list[Entry], train: list[int], test: list[int]
) -> None:
    """Write a fold's two LMDBs and its Hydra data group."""
    from est_ocp.data import write_oc20_lmdb

    folder = training.fold_folder(out, by, held_out)
    for split, numbers in (("train", train), ("held_out", test)):
        records = [record(entries[i], i) for i in numbers]
        write_oc20_lmdb(folder / split, records, task="is2re", overwrite=True)
    training.write_data_config(out, by, held_out, [entries[i].energy for i in train])


def keep(
    out: Path,
    job: Training,
    entries: list[Entry],
    fold: tuple[list[int], list[int]],
    result: dict,
) -> float:
    """Append a training's rows to the two CSV files and return its MAE, eV."""
    chosen = [entries[i] for i in result["ids"]]
    energy = np.array([entry.energy for entry in chosen])
    key = {"by": job.by, "held_out": job.held_out, "model": job.model, "seed": job.seed}
    rows = [
        key
        | {name: getattr(entry, name) for name in ("name", "metal", "adsorbate", "site")}
        | {"coverage": entry.coverage, "energy": f"{entry.energy:.5f}", "prediction": f"{p:.5f}"}
        for entry, p in zip(chosen, result["predictions"], strict=True)
    ]
    figures = report.metrics(energy, np.array(result["predictions"]))
    line = key | {"train": len(fold[0]), "test": len(fold[1])} | figures
    line |= {name: result[name] for name in ("epochs", "steps", "seconds", "parameters")}
    report.append(out / "predictions.csv", report.PREDICTIONS, rows)
    report.append(out / "trainings.csv", report.TRAININGS, [line])
    return figures["mae"]


def check_settings(out: Path, settings: Settings, arguments: argparse.Namespace) -> None:
    """Refuse to mix results of different settings in one folder."""
    same = asdict(settings) | {
        "out": None, "data": Path(arguments.data).name, "structures": arguments.structures,
    }  # fmt: skip
    file = out / "settings.json"
    text = json.dumps(same, indent=2, default=list) + "\n"
    if file.is_file() and file.read_text() != text:
        sys.exit(f"{out} holds results of other settings ({file}); choose another --out")
    file.write_text(text)


def shown_command(argv: list[str], arguments: argparse.Namespace) -> str:
    """Return the command for the page, with the names of files in place of this machine's paths."""
    names = {str(p): Path(p).name for p in (arguments.data, arguments.out, arguments.page) if p}
    words = ["python", "scripts/studies/is2re_adsorption.py", *(names.get(w, w) for w in argv)]
    return shlex.join(words)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, until the time is over, and write the page."""
    deadline = time.time()
    arguments = parse(argv)
    deadline += 60 * arguments.minutes
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)

    import torch

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    workers = arguments.loader_workers
    settings = Settings(
        out=str(out),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        device=device,
        loader_workers=workers if workers is not None else int(device == "cuda"),
        overrides=tuple(arguments.overrides),
    )
    check_settings(out, settings, arguments)
    everything = entries = read_entries(arguments.data)
    if arguments.structures:
        chosen = np.linspace(0, len(entries) - 1, arguments.structures).astype(int)
        entries = [entries[i] for i in sorted(set(chosen.tolist()))]
    moved = sum(site_after_relaxation(entry) != entry.site for entry in everything)
    print(f"{len(everything)} energies; composition, coverage and cell as published; {moved} moved")

    folds = folds_of(entries, arguments.by)
    wanted = arguments.folds or list(folds)
    done = {
        (r["by"], r["held_out"], r["model"], r["seed"]) for r in report.read(out / "trainings.csv")
    }
    missing = []
    for held_out in wanted:
        train, test = folds[held_out]
        write_fold(out, arguments.by, held_out, entries, train, test)
        if (arguments.by, held_out, "mean", "0") not in done:
            trivial = {"ids": test, "predictions": mean_predictor(entries, train, test)}
            trivial |= {"epochs": 0, "steps": 0, "seconds": 0.0, "parameters": 0}
            keep(
                out, Training("mean", arguments.by, held_out, 0), entries, folds[held_out], trivial
            )
    for seed in range(arguments.seeds):
        for held_out in wanted:
            for model in arguments.models:
                if (arguments.by, held_out, model, str(seed)) not in done:
                    missing.append(Training(model, arguments.by, held_out, seed))

    # The trainings share the cores; each has one thread to launch kernels with.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    work = functools.partial(training.run, settings=settings)
    failed, ran = {}, 0
    for job, result, error in run_all(work, missing, arguments.jobs, deadline, out / "logs"):
        if error is not None:
            failed[job.name] = error
            print(f"{job.name} failed:\n{error}", flush=True)
            continue
        mae = keep(out, job, entries, folds[job.held_out], result | {"epochs": settings.epochs})
        ran += 1
        print(
            f"[{ran}/{len(missing)}] {job.name}: MAE {mae:.3f} eV, {result['steps']} steps, "
            f"{result['seconds']:.0f} s",
            flush=True,
        )
    print(f"{ran} of {len(missing)} trainings ran, {len(failed)} failed")
    command = shown_command(argv or sys.argv[1:], arguments)
    page = arguments.page or out / "is2re_adsorption.md"
    write_page(page, out, arguments.by, settings, command, moved)
    print(f"page: {page}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
