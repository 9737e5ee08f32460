"""The soak: it sees a leak, in the training or its loaders, and none where there is none."""

from __future__ import annotations

import csv
import importlib.util
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.training.launch import write_tiny_data

SCRIPT = Path(__file__).parents[2] / "scripts" / "reliability" / "soak.py"

spec = importlib.util.spec_from_file_location("soak", SCRIPT)
soak = importlib.util.module_from_spec(spec)
sys.modules["soak"] = soak
spec.loader.exec_module(soak)

#: A training of its own kind: notes its steps, and keeps a megabyte of each if told to.
PRETENDER = """
import json, subprocess, sys, time
metrics, leak = sys.argv[1], int(sys.argv[2])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
kept = []
for step in range(1, 100000):
    kept.append(bytearray(leak))
    with open(metrics, "a") as file:
        file.write(json.dumps({"step": step}) + "\\n")
    time.sleep(0.02)
"""


def series(leak: float, noise: float = 3.0) -> list:
    """Samples every 5 s and 30 steps; memory settles in the first 5 minutes, then leaks."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(360):
        step = 30 * (i + 1)
        memory = 900 + min(i, 60) + leak * step / 1000 + rng.normal(scale=noise)
        memory += 80 * (i % 37 == 0)  # a checkpoint
        samples.append(soak.Sample(5.0 * i, step, memory, 400.0, 2))
    return samples


@pytest.mark.parametrize("leak", [0.0, 0.5, 5.0])
def test_the_slope_is_the_leak(leak):
    slope, low, high = soak.growth(series(leak))
    assert slope == pytest.approx(leak, abs=0.15)
    assert low < slope < high


def test_too_few_samples_are_no_slope():
    with pytest.raises(ValueError, match="too short"):
        soak.growth(series(0.0)[:8])
    with pytest.raises(ValueError, match="too short"):
        soak.growth([])


def test_memory_is_that_of_the_process():
    before = soak.resident(os.getpid())
    # Pages of its own: an allocation may get memory that earlier tests have left.
    with mmap.mmap(-1, 100 * 2**20) as pages:
        block = np.frombuffer(pages, dtype=np.uint8)
        block[:] = 1
        assert 95 < soak.resident(os.getpid()) - before < 130
        assert block[-1] == 1
        del block
    assert soak.resident(2**22 + 1) == 0.0


@pytest.mark.parametrize("leak", [0, 2**20])
def test_a_leaking_process_is_seen(tmp_path, leak):
    metrics = tmp_path / "metrics.jsonl"
    command = [sys.executable, "-c", PRETENDER, str(metrics), str(leak)]
    samples = soak.watch(command, metrics, tmp_path / "log", seconds=2.0, interval=0.05)
    assert all(s.processes == 2 and s.loaders > 1 for s in samples[2:])
    assert [s.step for s in samples] == sorted(s.step for s in samples)
    slope, _, _ = soak.growth(samples)
    assert slope == pytest.approx(1000 if leak else 0, abs=150)
    soak.write(samples, tmp_path)
    with (tmp_path / "soak.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["training"]) == samples[-1].training
    assert (tmp_path / "soak.png").stat().st_size > 5000


def test_nothing_is_left_running_and_an_end_is_an_error(tmp_path):
    before = set(soak.children(os.getpid()))
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(RuntimeError, match="ended by itself with code 3"):
        soak.watch(command, tmp_path / "none", tmp_path / "log", seconds=5.0, interval=0.05)
    assert set(soak.children(os.getpid())) <= before


@pytest.mark.slow
def test_a_short_soak_of_a_real_training(tmp_path):
    data = write_tiny_data(tmp_path / "data")
    done = subprocess.run(
        [
            sys.executable, SCRIPT, "--minutes", "0.3", "--interval", "0.5", "--bound", "1000",
            "--out", tmp_path / "soak", "--", f"data.root={data}", "model=est_s2ef_debug",
        ],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "MB for 1,000 steps" in done.stdout
    with (tmp_path / "soak" / "soak.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["step"]) > int(rows[0]["step"])
    assert all(int(row["processes"]) >= 2 for row in rows[3:])
