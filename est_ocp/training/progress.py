"""A progress bar with the time left."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from fairchem.core.common import distutils
from torchtnt.framework.callback import Callback
from tqdm import tqdm

from est_ocp.training.metrics_log import evaluation_metrics
from est_ocp.training.step_watcher import StepWatcher
from est_ocp.training.wall_clock import ClockCosine, clock_of

logger = logging.getLogger("est_ocp.progress")


class ProgressBar(Callback):
    """Step, time left, losses, learning rate and speed, on rank 0; evaluations get their own bar.

    On a terminal it is a live bar; in a file (a SLURM log) one line every ``log_seconds``.

    Parameters
    ----------
    log_seconds : float
        Seconds between lines where the output is not a terminal.
    """

    def __init__(self, log_seconds: float = 30.0) -> None:
        self.live = sys.stderr.isatty()
        self.log_seconds = log_seconds
        self.watcher = StepWatcher()
        self.bar: tqdm | None = None
        self.eval_bar: tqdm | None = None
        self.clock: ClockCosine | None = None
        self.shown = self.speed_since = 0.0
        self.samples = 0

    def on_train_start(self, state: Any, unit: Any) -> None:
        """Open the bar."""
        if not distutils.is_master():
            return
        self.watcher.attach(unit)
        train = state.train_state
        total = train.max_steps
        self.clock = clock_of(unit)
        if total is None and train.max_epochs is not None and self.clock is None:
            total = train.max_epochs * len(train.dataloader)
        self.bar = self._open(total, unit.train_progress.num_steps_completed, "train", "step")
        self.shown = self.speed_since = time.perf_counter()

    def on_train_step_end(self, state: Any, unit: Any) -> None:
        """Move on by one step; refresh the figures now and then."""
        if self.bar is None:
            return
        self.samples += self.watcher.num_samples
        self.bar.update()
        now = time.perf_counter()
        if now - self.shown < (0.5 if self.live else self.log_seconds):
            return
        speed = self.samples * distutils.get_world_size() / (now - self.speed_since)
        figures = {"loss": f"{float(unit.last_loss):.3g}"}
        figures |= {k: f"{float(v):.3g}" for k, v in self.watcher.task_losses.items()}
        figures["lr"] = f"{unit.optimizer.param_groups[0]['lr']:.2g}"
        if self.clock is not None:
            figures["time"] = f"{self.clock.progress:.0%}"
        figures["samples/s"] = f"{speed:.3g}"
        self.bar.set_postfix(figures, refresh=self.live)
        if not self.live:
            logger.info(str(self.bar))
        self.shown, self.speed_since, self.samples = now, now, 0

    def on_eval_start(self, state: Any, unit: Any) -> None:
        """Open the bar of an evaluation."""
        if not distutils.is_master():
            return
        total = len(state.eval_state.dataloader)
        if state.eval_state.max_steps_per_epoch is not None:
            total = min(total, state.eval_state.max_steps_per_epoch)
        self.eval_bar = self._open(total, 0, "evaluate", "batch", leave=False)
        self.eval_shown = time.perf_counter()

    def on_eval_step_end(self, state: Any, unit: Any) -> None:
        """Move on by one batch."""
        if self.eval_bar is None:
            return
        self.eval_bar.update()
        now = time.perf_counter()
        if not self.live and now - self.eval_shown > self.log_seconds:
            logger.info(str(self.eval_bar))
            self.eval_shown = now

    def on_eval_end(self, state: Any, unit: Any) -> None:
        """Close the evaluation's bar and show its main figures."""
        splits = evaluation_metrics(unit)
        if self.eval_bar is None:
            return
        self.eval_bar.close()
        self.eval_bar = None
        self._say(_evaluation_table(splits))
        self.speed_since, self.samples = time.perf_counter(), 0

    def on_train_end(self, state: Any, unit: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            if not self.live:
                logger.info(str(self.bar))
            self.bar.close()
            self.bar = None
            self.watcher.detach()

    def on_exception(self, state: Any, unit: Any, exc: BaseException) -> None:
        """Close the bars."""
        for bar in (self.eval_bar, self.bar):
            if bar is not None:
                bar.close()

    def _open(self, total: int | None, done: int, what: str, unit: str, leave: bool = True) -> tqdm:
        return tqdm(
            total=total,
            initial=done,
            desc=what,
            unit=unit,
            leave=leave,
            dynamic_ncols=True,
            # without a terminal the bar is only a formatter: its lines go through the log
            file=None if self.live else _Nowhere(),
        )

    def _say(self, text: str) -> None:
        if self.live:
            tqdm.write(text, file=sys.stderr)
        else:
            for line in text.splitlines():
                logger.info(line)


class _Nowhere:
    """A file that swallows what is written."""

    def write(self, _text: str) -> None: ...

    def flush(self) -> None: ...


def _evaluation_table(splits: dict[str, dict[str, float]]) -> str:
    names = [n for n in ("energy_mae", "forces_mae") if any(n in m for m in splits.values())]
    names = names or sorted(next(iter(splits.values()), {}))
    width = max(map(len, [*splits, "split"]))
    lines = [f"{'split':<{width}}" + "".join(f"  {n:>12}" for n in names)]
    for split, metrics in splits.items():
        cells = "".join(f"  {metrics.get(n, float('nan')):>12.4f}" for n in names)
        lines.append(f"{split:<{width}}{cells}")
    return "\n".join(lines)
