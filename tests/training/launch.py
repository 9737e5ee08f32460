"""Tiny trainings through fairchem's own entry point, for the tests of three folders."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from fairchem.core._cli import main
from fairchem.core.common import distutils
from fairchem.core.launchers import slurm_launch
from hydra.core.global_hydra import GlobalHydra

from est_ocp.data import load_demo_frames, write_oc20_lmdb
from est_ocp.data.demo_splits import TEST_SPLITS, relaxation_records, unlabelled_records
from est_ocp.data.frames import SPLITS

CONFIGS = Path(__file__).parents[2] / "configs"
DEBUG = CONFIGS / "s2ef" / "debug.yml"
DEBUG_IS2RE = CONFIGS / "is2re" / "debug.yml"

#: Overrides that add the auxiliary task IS2RS to the smallest IS2RE model.
IS2RS = ("tasks=is2re_is2rs", "model/heads=energy_position", "model.backbone.lmax_out=1")

#: Frames of the embedded set that the tiny set takes from each split.
TRAIN_FRAMES, VAL_FRAMES = 24, 5


def write_tiny_data(folder: Path) -> Path:
    """Write the five splits with a few frames each."""
    frames = load_demo_frames()
    for split in SPLITS:
        count = TRAIN_FRAMES if split == "train" else VAL_FRAMES
        records = list(frames.of_split(split).records())
        write_oc20_lmdb(folder / split, records[:: len(records) // count][:count])
    return folder


def write_tiny_is2re(folder: Path) -> Path:
    """Write IS2RE files as OC20 has them, one ``is2re/<split>/data.lmdb`` a split."""
    frames = load_demo_frames()
    for split in SPLITS:
        count = TRAIN_FRAMES if split == "train" else VAL_FRAMES
        records = list(relaxation_records(frames.of_split(split)))
        chosen = records[:: len(records) // count][:count]
        write_oc20_lmdb(folder / "is2re" / split, chosen, task="is2re")
    for split in TEST_SPLITS:
        labelled = frames.of_split(split.replace("test", "val"))
        records = list(unlabelled_records(labelled, with_fid=False))[:VAL_FRAMES]
        write_oc20_lmdb(folder / "is2re" / split, records, task="is2re")
    return folder


def train(config: Path, *overrides: str) -> None:
    """Run ``fairchem --config`` in this process, without its report on the environment.

    The report lists all installed packages and takes seconds; trainings that tests start as
    commands write it.
    """
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    distutils.cleanup()
    GlobalHydra.instance().clear()
    try:
        with patch.object(slurm_launch, "write_environment_report"):
            main(argparse.Namespace(config=str(config)), list(overrides))
    finally:
        distutils.cleanup()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def fairchem_command(config: Path, *overrides: str) -> list[str]:
    """Return the command line of the installed ``fairchem``."""
    return [str(Path(sys.executable).with_name("fairchem")), "--config", str(config), *overrides]


def run_command(command: list[str], timeout: float = 240, **environment: str) -> str:
    """Run a command and return what it printed; a non-zero code fails with that text."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        check=False,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-4000:]
    return text
