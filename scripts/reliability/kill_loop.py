"""Kill a training again and again, and check that it never loses more than one interval.

A tiny model trains through fairchem's entry point with a checkpoint every few steps. It is killed
(SIGKILL) at random moments, a third of them while a checkpoint is being written, and started again
with the same command. After each kill the newest valid checkpoint must lie at most one interval
behind the last step done; at the end the losses of all steps must equal those of a run that nobody
killed.

    python scripts/reliability/kill_loop.py --kills 50

Each training is a fork of this process, so that Python's imports, 8 s each time, are paid once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fairchem.core._cli import main as fairchem_main
from fairchem.core.launchers import slurm_launch
from tqdm import tqdm

from est_ocp.data import load_demo_frames, write_oc20_lmdb
from est_ocp.data.frames import SPLITS
from est_ocp.errors import CheckpointError
from est_ocp.training import latest_checkpoint, metrics_file

CONFIG = Path(__file__).parents[2] / "configs" / "s2ef" / "debug.yml"
#: Longest time that a training may take to reach the moment of its kill.
PATIENCE_SECONDS = 300


class Training:
    """A training that can be started, killed and started again."""

    def __init__(self, folder: Path, name: str, steps: int, every: int) -> None:
        self.run = folder / name
        self.log = folder / f"{name}.log"
        self.overrides = [
            f"data.root={folder / 'data'}", f"job.run_dir={folder}", f"job.timestamp_id={name}",
            f"steps={steps}", f"checkpoint_every={every}", "max_eval_batches=1",
            "eval_batch_size=8",
        ]  # fmt: skip
        self.process: multiprocessing.Process | None = None

    def start(self) -> None:
        """Start it, always with the same command."""
        self.process = multiprocessing.get_context("fork").Process(target=self._train)
        self.process.start()

    def _train(self) -> None:
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        # A progress bar's lock is shared with earlier forks, and a killed one may have held it.
        tqdm.set_lock(threading.RLock())
        # The report on the machine takes seconds in processes that a kill would leave behind.
        slurm_launch.write_environment_report = lambda **_: None
        fairchem_main(argparse.Namespace(config=str(CONFIG)), list(self.overrides))

    def kill(self) -> None:
        """Kill it, if it still runs."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        if self.process.exitcode != -signal.SIGKILL:
            self.fail(f"it ended by itself, with code {self.process.exitcode}")

    def finish(self) -> None:
        """Let it come to its end."""
        self.process.join()
        if self.process.exitcode:
            self.fail(f"it ended with code {self.process.exitcode}")

    def wait(self, reached: Callable[[], bool], look_every: float) -> None:
        """Wait until something is so, looking every so many seconds."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not reached():
            if not self.process.is_alive():
                self.fail(f"it ended by itself, with code {self.process.exitcode}")
            if time.monotonic() > end:
                self.kill()
                self.fail("it came no further")
            time.sleep(look_every)

    def fail(self, reason: str) -> None:
        """End with what the training printed last."""
        sys.exit(f"{self.log.read_text()[-3000:]}\nthe training is unusable: {reason}")

    def losses(self) -> dict[int, float]:
        """Loss of each step done so far."""
        rows = metrics_file.read(self.run / metrics_file.FILE_NAME)
        return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}

    def saved_step(self) -> int | None:
        """Step of the newest valid checkpoint."""
        try:
            name = latest_checkpoint(self.run).name
        except CheckpointError:
            return None
        return int(name.removeprefix("step_"))

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.run / "checkpoints").glob("*.partial"))


def kill_somewhere(training: Training, rng: random.Random) -> str:
    """Wait for a random moment and kill; return what kind of moment it was."""
    kind = rng.choice(("start", "steps", "saving"))
    before = max(training.losses(), default=0)
    training.start()
    if kind == "start":
        time.sleep(rng.uniform(0, 3))
    else:
        goal = before + rng.randint(1, 8)
        training.wait(lambda: max(training.losses(), default=0) > goal, 0.05)
        if kind == "saving":
            training.wait(training.is_saving, 0.002)
            time.sleep(rng.uniform(0, 0.03))
        else:
            time.sleep(rng.uniform(0, 0.2))
    training.kill()
    return kind


def write_data(folder: Path) -> None:
    """Write 24 structures to train on and two of each validation split."""
    frames = load_demo_frames()
    for split in SPLITS:
        count = 24 if split == "train" else 2
        records = list(frames.of_split(split).records())
        write_oc20_lmdb(folder / split, records[:: len(records) // count][:count])


def kill_loop(folder: Path, kills: int, every: int, seed: int) -> None:
    """Run the loop and print what came of it."""
    write_data(folder / "data")
    steps = kills * 7 + 12
    rng = random.Random(seed)
    training = Training(folder, "killed", steps, every)
    lost, in_saving, started = [], 0, time.perf_counter()
    for number in range(1, kills + 1):
        kind = kill_somewhere(training, rng)
        done, saved = max(training.losses(), default=0), training.saved_step()
        in_saving += training.is_saving()
        if saved is None and done:
            training.fail(f"no valid checkpoint after {done} steps")
        lost.append(done - (saved or 0))
        print(f"kill {number:3d} ({kind:6s}): step {done}, newest checkpoint {saved}", flush=True)
        if lost[-1] > every:
            training.fail(f"{lost[-1]} steps are lost, more than an interval of {every}")
    training.start()
    training.finish()
    seconds = time.perf_counter() - started
    whole = Training(folder, "whole", steps, every)
    whole.start()
    whole.finish()
    if training.losses() != whole.losses() or len(whole.losses()) != steps:
        training.fail("its losses are not those of the run that nobody killed")
    print(
        f"{kills} kills, {in_saving} of them inside the saving of a checkpoint, {steps} steps, "
        f"a checkpoint every {every}: at most {max(lost)} steps lost, {sum(lost) / kills:.1f} in "
        f"the mean; all {steps} losses equal the uninterrupted run's; {seconds:.0f} s "
        f"({os.cpu_count()} cores, {platform.machine()})"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--every", type=int, default=4, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kill_loop(Path(folder), arguments.kills, arguments.every, arguments.seed)


if __name__ == "__main__":
    main()
