"""What scripts with many trainings share: options, the CSV of trainings, origin, archive."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tarfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from csv_rows import append, read

from buildingblocks.molecules import write_cache
from buildingblocks.training import Protocol, run_group
from buildingblocks.variants import Variant
from buildingblocks.workers import run_all

TRAININGS = (
    "variant", "seed", "budget", "test_mae", "train_mae", "rotation_error", "rotation_relative",
    "step_ms", "inference_ms", "parameters", "steps", "epochs", "batch_size", "mode",
    "train_seconds", "all_seconds", "card", "torch",
)  # fmt: skip
CSV = "trainings.csv"
ORIGIN = "origin.json"
#: What --smoke trains with.
SMOKE = {"batch_size": 4, "test_molecules": 32, "rotation_molecules": 16, "tiny": True}
#: Kinds of files that --pack takes.
PACKED = (".csv", ".json", ".md", ".png", ".log")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of all these scripts."""
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--data", type=Path, help="folder that `est-ocp data qm9` wrote")
    parser.add_argument("--page", type=Path, help="Markdown page (default: in --out)")
    parser.add_argument("--seeds", type=int, help="of each variant (default: 3; smoke: 1)")
    parser.add_argument("--steps", type=int, default=Protocol.steps, help="of each training")
    parser.add_argument("--batch-size", type=int, default=Protocol.batch_size)
    parser.add_argument("--lr", type=float, default=Protocol.lr)
    parser.add_argument("--devices", nargs="+", help="default: all GPUs, or the CPU")
    parser.add_argument("--minutes", type=float, default=1e6, help="time after which to stop")
    parser.add_argument("--report", action="store_true", help="only write the page")
    parser.add_argument("--smoke", action="store_true", help="seconds on the embedded molecules")
    parser.add_argument("--pack", type=Path, help="tar.gz of all results, made at the end")


def seeds_of(arguments: argparse.Namespace) -> int:
    """Trainings of each variant."""
    return arguments.seeds or (1 if arguments.smoke else 3)


def started() -> float:
    """Time of the start of this process, if it is known, else now."""
    try:
        with open("/proc/self/stat") as file:
            ticks = float(file.read().rsplit(")", 1)[1].split()[19])
        with open("/proc/uptime") as file:
            up = float(file.read().split()[0])
        return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.time()


def devices_of(arguments: argparse.Namespace) -> list[str]:
    """Where to train."""
    if arguments.devices:
        return list(arguments.devices)
    if arguments.smoke:
        return ["cpu"]
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]


def protocol_of(arguments: argparse.Namespace) -> Protocol:
    """Protocol of the options, its data prepared."""
    cache = arguments.out.resolve() / "molecules.pt"
    folder = arguments.data
    if arguments.smoke:
        from est_ocp.data import write_qm9

        folder = arguments.out / "data"
        write_qm9(folder, "subset")
    if not cache.is_file():
        if folder is None:
            raise SystemExit("name --data, the folder that `est-ocp data qm9` wrote")
        write_cache(folder, cache)
    protocol = Protocol(
        str(cache), steps=arguments.steps, batch_size=arguments.batch_size, lr=arguments.lr
    )
    if arguments.smoke:
        protocol = replace(protocol, **SMOKE, steps=min(arguments.steps, 4))
    check_protocol(arguments.out, protocol)
    return protocol


def check_protocol(out: Path, protocol: Protocol) -> None:
    """Refuse to mix trainings of different protocols in one folder."""
    same = {key: value for key, value in asdict(protocol).items() if key != "data"}
    file = out / "protocol.json"
    text = json.dumps(same, indent=2) + "\n"
    if file.is_file() and file.read_text() != text:
        raise SystemExit(
            f"{out} holds trainings of another protocol ({file}); choose another --out"
        )
    file.write_text(text)


def note_origin(arguments: argparse.Namespace, script: str, words: Sequence[str]) -> None:
    """Keep the command and the machine for the page, which may be written elsewhere."""
    from est_ocp.evaluation.machine import machine_info

    file = arguments.out / ORIGIN
    # Names of files in place of this machine's paths.
    paths = (arguments.out, arguments.data, arguments.page, arguments.pack)
    names = {str(path): path.name for path in paths if path}
    words = [names.get(word, word) for word in words]
    found = json.loads(file.read_text()) if file.is_file() else {"commands": []}
    command = shlex.join(["python", f"scripts/studies/{script}", *words])
    if command not in found["commands"]:
        found["commands"].append(command)
    found["machine"] = machine_info()
    file.write_text(json.dumps(found, indent=2) + "\n")


def origin_lines(out: Path) -> list[str]:
    """Commands and machine, in Markdown."""
    file = out / ORIGIN
    if not file.is_file():
        return ["(no training ran here)"]
    found = json.loads(file.read_text())
    machine = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    return [*(f"    {command}" for command in found["commands"]), "", f"{machine}."]


def train(
    wanted: Iterable[tuple[Variant, int, str, float | None]],
    arguments: argparse.Namespace,
    protocol: Protocol,
    deadline: float,
) -> list[str]:
    """Run what the CSV does not hold, all missing seeds of a variant at once.

    Parameters
    ----------
    wanted : iterable of (Variant, seed, budget, seconds)
        In order of importance; `budget` is a word for the CSV, `seconds` as of :class:`Protocol`.
    arguments : Namespace
    protocol : Protocol
    deadline : float
        In seconds of ``time.time()``.

    Returns
    -------
    list of str
        Names of what failed.
    """
    path = arguments.out / CSV
    done = {(row["variant"], int(row["seed"]), row["budget"]) for row in read(path)}
    groups: dict[tuple[str, str], tuple[Variant, list[int], Protocol]] = {}
    for variant, seed, budget, seconds in wanted:
        if (variant.name, seed, budget) in done:
            continue
        own = protocol
        if seconds is not None:
            own = replace(protocol, seconds=seconds, steps=2 * protocol.steps)
        item = groups.setdefault((variant.name, budget), (variant, [], own))
        item[1].append(seed)
    items = list(groups.values())
    names = {(item[0].name, item[2].seconds): key[1] for key, item in groups.items()}
    print(f"{len(items)} groups of trainings to run, {len(done)} trainings there", flush=True)
    failed, ended = [], 0
    devices = devices_of(arguments)
    for (variant, seeds, own), rows, error in run_all(
        run_group, items, devices, deadline, arguments.out / "logs"
    ):
        ended += 1
        budget = names[variant.name, own.seconds]
        if error is not None:
            failed.append(f"{variant.name} ({budget})")
            print(f"{variant.name} failed:\n{error}", file=sys.stderr, flush=True)
            continue
        append(path, TRAININGS, [row | {"budget": budget} for row in rows])
        mae = " ".join(f"{row['test_mae']:.4f}" for row in rows)
        first = rows[0]
        print(
            f"[{ended}/{len(items)}] {variant.name}, seeds {seeds}: test MAE {mae}, "
            f"{first['step_ms']} ms a step ({first['mode']}), {rows[-1]['all_seconds']} s",
            flush=True,
        )
    if ended < len(items):
        print(f"{len(items) - ended} groups left for the next run", flush=True)
    return failed


def pack(out: Path, archive: Path) -> None:
    """Put all results of a folder into one file."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(out.rglob("*")):
            if path.suffix in PACKED and "data" not in path.relative_to(out).parts:
                tar.add(path, arcname=str(path.relative_to(out)))


def table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> list[str]:
    """Markdown table."""
    out = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return out + ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def kept_remarks(page: Path, heading: str = "## Remarks") -> list[str]:
    """The hand-written last section of an earlier page, if there is one."""
    text = page.read_text() if page.is_file() else ""
    return ["", text[text.index(heading) :].rstrip()] if heading in text else []
