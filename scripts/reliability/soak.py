"""Train for a while and watch the memory: does it grow?

A training on the demonstration set runs through `fairchem --config configs/demo/s2ef.yml`, one
process with one thread and a loader process, with checkpoints and evaluations on the way. Every
few seconds the resident memory of the training and of its loader is noted with the step. After the
time is up the training is ended; the slope of the memory over the steps after warming up must stay
below a bound. Linux only.

    python scripts/reliability/soak.py --minutes 30 --out runs/soak

Writes soak.csv, soak.png and the training's log. Overrides for the training follow after `--`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from scipy.stats import theilslopes

CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "s2ef.yml"
RUN = "soak"
OVERRIDES = (
    "job.scheduler.ranks_per_node=1", "cluster.num_workers=1", "batch_size=8", "steps=10000000",
    "checkpoint_every=200", "log_every=10",
)  # fmt: skip
MEGABYTE = 2**20


@dataclass
class Sample:
    """One look at the training: memory in MB, of its process and of those it started."""

    seconds: float
    step: int
    training: float
    loaders: float
    processes: int


def children(pid: int) -> list[int]:
    """Return the processes that `pid` started, and that those started."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *children(child)]
    return found


def resident(pid: int) -> float:
    """Resident memory of a process in MB; 0 once it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


def last_step(metrics: Path) -> int:
    """Return the newest step in a run's metrics.jsonl, 0 before the first."""
    if not metrics.is_file():
        return 0
    for line in reversed(metrics.read_text().splitlines()):
        try:
            return int(json.loads(line)["step"])
        except (json.JSONDecodeError, KeyError):
            continue
    return 0


def watch(
    command: list[str], metrics: Path, log: Path, seconds: float, interval: float
) -> list[Sample]:
    """Run a command for so many seconds after its first step, and look at it at each interval.

    Raises
    ------
    RuntimeError
        If it ends by itself.
    """
    samples: list[Sample] = []
    start = None
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            while start is None or time.monotonic() - start < seconds:
                time.sleep(interval)
                if process.poll() is not None:
                    raise RuntimeError(
                        f"the training ended by itself with code {process.returncode}; see {log}"
                    )
                step = last_step(metrics)
                if step == 0:
                    continue
                start = start or time.monotonic()
                family = children(process.pid)
                loaders = sum(resident(pid) for pid in family)
                elapsed = time.monotonic() - start
                samples.append(
                    Sample(elapsed, step, resident(process.pid), loaders, 1 + len(family))
                )
        finally:
            # The group is the training's own: it was started as a session.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return samples


def growth(samples: list[Sample], warm_up: float = 0.25) -> tuple[float, float, float]:
    """Slope of all memory over the steps after warming up, in MB for 1,000 steps.

    Parameters
    ----------
    samples : list of Sample
    warm_up : float
        Part of the time that is left out.

    Returns
    -------
    tuple of float
        Slope (Theil and Sen's: the median over pairs of samples, which the peaks of checkpoints do
        not move) and the bounds of its 95% interval.

    Raises
    ------
    ValueError
        If fewer than 10 samples with steps between them are left.
    """
    begin = samples[-1].seconds * warm_up if samples else 0.0
    late = [s for s in samples if s.seconds >= begin]
    if len(late) < 10 or late[0].step == late[-1].step:
        raise ValueError("too short for a slope: fewer than 10 samples after warming up")
    steps = np.array([s.step for s in late], dtype=float)
    memory = np.array([s.training + s.loaders for s in late])
    slope, _, low, high = theilslopes(memory, steps)
    return 1000 * slope, 1000 * low, 1000 * high


def write(samples: list[Sample], folder: Path) -> None:
    """Write soak.csv and soak.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with (folder / "soak.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([field.name for field in fields(Sample)])
        rows.writerows(astuple(sample) for sample in samples)
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    steps = [s.step for s in samples]
    axes.plot(steps, [s.training for s in samples], label="training")
    axes.plot(steps, [s.loaders for s in samples], label="loader processes")
    axes.set(xlabel="step", ylabel="resident memory (MB)", ylim=(0, None))
    axes.legend()
    figure.savefig(folder / "soak.png", dpi=150)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Soak; 1 where the memory grows by more than the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="after the first step")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--bound", type=float, default=5.0, help="MB for 1,000 steps")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="must not exist")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("overrides", nargs="*", help="of the training, after --")
    options = parser.parse_args(arguments)

    options.out.mkdir(parents=True)
    programs = Path(sys.executable).parent
    if not any(o.startswith("data.root=") for o in options.overrides):
        data = options.out / "data"
        subprocess.run([programs / "est-ocp", "data", "demo", "--out", data], check=True)
        options.overrides.append(f"data.root={data}")
    command = [
        str(programs / "fairchem"), "--config", str(options.config), f"job.run_dir={options.out}",
        f"job.timestamp_id={RUN}", *OVERRIDES, *options.overrides,
    ]  # fmt: skip
    print(" ".join(command), flush=True)
    samples = watch(
        command,
        options.out / RUN / "metrics.jsonl",
        options.out / "training.log",
        60 * options.minutes,
        options.interval,
    )
    write(samples, options.out)
    slope, low, high = growth(samples)
    first, last = samples[0], samples[-1]
    print(
        f"{last.step} steps in {last.seconds / 60:.1f} minutes; "
        f"memory {first.training + first.loaders:.0f} MB at step {first.step}, "
        f"{last.training + last.loaders:.0f} MB at the end, "
        f"at most {max(s.training + s.loaders for s in samples):.0f} MB\n"
        f"slope after warming up: {slope:+.3f} MB for 1,000 steps "
        f"(95%: {low:+.3f} to {high:+.3f}), bound {options.bound:g}"
    )
    if slope > options.bound:
        print("the memory grows: more than the bound", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
