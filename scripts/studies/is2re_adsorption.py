"""IS2RE on real DFT: adsorption energies of Xu and Kitchin (2014), three models at equal epochs.

    python scripts/studies/is2re_adsorption.py --data dft_adsorption.json --out results/adsorption

From ideal, unrelaxed structures built by this script the models predict DFT adsorption energies.
Left out in turn: one metal, one adsorbate (``--by adsorbate``), or pairs of both whose elements are
known (``--by pair``). Every training goes
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
from csv_rows import append, read


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="JSON of structures and energies")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--page", type=Path, help="Markdown page (default: in --out)")
    parser.add_argument("--by", choices=("metal", "adsorbate", "pair"), default="metal")
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
    parser.add_argument("--loader-workers", type=int, default=0)
    parser.add_argument(
        "--keep-checkpoints", action="store_true", help="of every training, for is2re_embedding.py"
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of every training")
    return parser.parse_args(argv)


def folds_of(entries: list[Entry], by: str) -> dict[str, tuple[list[int], list[int]]]:
    """Return for each group left out the numbers of the training and of the test entries."""
    groups: dict[str, list[int]] = defaultdict(list)
    metals = sorted({entry.metal for entry in entries})
    adsorbates = sorted({entry.adsorbate for entry in entries})
    for number, entry in enumerate(entries):
        if by == "pair":
            diagonal = metals.index(entry.metal) + adsorbates.index(entry.adsorbate)
            groups[f"pairs{diagonal % len(metals) + 1}"].append(number)
        else:
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


def additive_predictor(entries: list[Entry], train: list[int], test: list[int]) -> list[float]:
    """Predict a sum of one term each for metal, adsorbate, site and coverage (least squares)."""
    names = ("metal", "adsorbate", "site", "coverage")
    terms = sorted({(name, getattr(entry, name)) for entry in entries for name in names}, key=str)
    table = np.array(
        [[float(getattr(entry, name) == value) for name, value in terms] for entry in entries]
    )
    energy = np.array([entries[i].energy for i in train])
    # The smallest solution: a term that no training entry has is zero, beside the mean.
    weights = np.linalg.lstsq(table[train], energy - energy.mean(), rcond=None)[0]
    return (table[test] @ weights + energy.mean()).tolist()


TRIVIAL_PREDICTORS = {"additive": additive_predictor, "mean": mean_predictor}


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
    append(out / "predictions.csv", report.PREDICTIONS, rows)
    append(out / "trainings.csv", report.TRAININGS, [line])
    return figures["mae"]


def check_settings(out: Path, settings: Settings, arguments: argparse.Namespace) -> None:
    """Refuse to mix results of different settings in one folder."""
    same = {"data": Path(arguments.data).name, "structures": arguments.structures}
    # Where and how fast it runs does not matter.
    elsewhere = ("out", "device", "loader_workers", "keep_checkpoints")
    same |= {key: value for key, value in asdict(settings).items() if key not in elsewhere}
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


def keep_origin(out: Path, by: str, command: str) -> None:
    """Write down the command and the machine of these results, for pages made elsewhere."""
    from est_ocp.evaluation.machine import machine_info

    file = out / f"origin-{by}.json"
    file.write_text(json.dumps({"command": command, "machine": machine_info()}, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, until the time is over, and write the page."""
    deadline = time.time()
    arguments = parse(argv)
    deadline += 60 * arguments.minutes
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)

    import torch

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = Settings(
        out=str(out),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        device=device,
        loader_workers=arguments.loader_workers,
        keep_checkpoints=arguments.keep_checkpoints,
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
    if set(wanted) - set(folds):
        sys.exit(f"--folds: choose from {', '.join(folds)}")
    done = {(r["by"], r["held_out"], r["model"], r["seed"]) for r in read(out / "trainings.csv")}
    missing = []
    for held_out in wanted:
        train, test = folds[held_out]
        write_fold(out, arguments.by, held_out, entries, train, test)
        for name, predict in TRIVIAL_PREDICTORS.items():
            if (arguments.by, held_out, name, "0") not in done:
                trivial = {"ids": test, "predictions": predict(entries, train, test)}
                trivial |= {"epochs": 0, "steps": 0, "seconds": 0.0, "parameters": 0}
                job = Training(name, arguments.by, held_out, 0)
                keep(out, job, entries, folds[held_out], trivial)
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
        if not ran:
            keep_origin(out, arguments.by, shown_command(argv or sys.argv[1:], arguments))
        ran += 1
        print(
            f"[{ran}/{len(missing)}] {job.name}: MAE {mae:.3f} eV, {result['steps']} steps, "
            f"{result['seconds']:.0f} s",
            flush=True,
        )
    print(f"{ran} of {len(missing)} trainings ran, {len(failed)} failed")
    page = arguments.page or out / "is2re_adsorption.md"
    write_page(page, out, arguments.by, settings, moved)
    print(f"page: {page}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
