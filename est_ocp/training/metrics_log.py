"""Training and evaluation figures to ``metrics.jsonl`` and, where asked for, tensorboard."""

from __future__ import annotations

import time
from typing import Any

import torch
from fairchem.core.common import distutils
from torchtnt.framework.callback import Callback

from est_ocp.errors import ConfigError
from est_ocp.training import metrics_file
from est_ocp.training.step_watcher import StepWatcher


def mean_over_ranks(values: list[Any]) -> list[float]:
    """Average numbers over all ranks with one reduction; every rank must call it."""
    device = distutils.get_device_for_local_rank()
    tensor = torch.stack([torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in values])
    if distutils.get_world_size() == 1:
        return tensor.tolist()
    return distutils.all_reduce(tensor.to(device), average=True, device=device).tolist()


def evaluation_metrics(unit: Any) -> dict[str, dict[str, float]]:
    """Return a unit's last evaluation by split, e.g. ``{"val_id": {"forces_mae": 0.1}}``.

    Sums over all ranks; every rank must call it. ``mean`` is the mean over the splits.
    """
    evaluated = getattr(unit, "eval_unit", unit)
    device = distutils.get_device_for_local_rank()
    splits: dict[str, dict[str, float]] = {}
    for task, by_dataset in evaluated.running_metrics.items():
        for dataset, metrics in by_dataset.items():
            split = dataset.split(".", 1)[-1]
            for name, metric in metrics.items():
                pair = torch.tensor([metric.total, metric.numel], dtype=torch.float64)
                if distutils.get_world_size() > 1:
                    pair = distutils.all_reduce(pair.to(device), average=False, device=device)
                total, count = pair.tolist()
                value = total / count if count else float("nan")
                full = name if name.startswith(task) else f"{task}_{name}"
                splits.setdefault(split, {})[full] = value
    names = sorted({name for metrics in splits.values() for name in metrics})
    mean = {
        name: sum(m[name] for m in splits.values()) / len(splits)
        for name in names
        if all(name in m for m in splits.values())
    }
    return splits | {"mean": mean}


class MetricsLog(Callback):
    """One row every so many steps, and one for each evaluation.

    Rows of kind ``train`` hold loss, each task's loss, learning rate, gradient norm and speed;
    rows of kind ``eval`` hold every metric of every split and their mean. After a resume, rows of
    steps that are gone through again are dropped first.

    Parameters
    ----------
    job_config : DictConfig
        The job, for the place of the run.
    every : int
        Steps between rows.
    tensorboard : bool
        Also write event files into the run's ``logs``.
    """

    def __init__(self, job_config: Any, every: int = 50, tensorboard: bool = False) -> None:
        self.path = metrics_file.metrics_path(job_config)
        self.every = every
        self.watcher = StepWatcher()
        self.seconds_before = 0.0
        self.started = self.row_started = time.perf_counter()
        self.samples = 0
        self.writer = None
        self.lr = 0.0
        if tensorboard and distutils.is_master():
            self.writer = _summary_writer(job_config.metadata.log_dir)

    def on_train_start(self, state: Any, unit: Any) -> None:
        """Begin, or go on after a resume."""
        self.watcher.attach(unit)
        if distutils.is_master():
            kept = metrics_file.drop_after(self.path, unit.train_progress.num_steps_completed)
            self.seconds_before = max((row.get("seconds", 0.0) for row in kept), default=0.0)
        self.started = self.row_started = time.perf_counter()

    def on_train_step_start(self, state: Any, unit: Any) -> None:
        """Note the learning rate before the scheduler moves on."""
        self.lr = unit.optimizer.param_groups[0]["lr"]

    def on_train_step_end(self, state: Any, unit: Any) -> None:
        """Write a row where one is due."""
        self.samples += self.watcher.num_samples
        step = unit.train_progress.num_steps_completed
        if step % self.every:
            return
        losses = self.watcher.task_losses
        loss, *by_task = mean_over_ranks([unit.last_loss, *losses.values()])
        now = time.perf_counter()
        row = {
            "kind": "train",
            "step": step,
            "epoch": self._epoch(state, unit),
            "seconds": round(self.seconds_before + now - self.started, 3),
            "loss": loss,
            **{f"loss_{name}": value for name, value in zip(losses, by_task, strict=True)},
            "lr": self.lr,
            "samples_per_second": self.samples
            * distutils.get_world_size()
            / (now - self.row_started),
        }
        if unit.last_grad_norm is not None:
            row["grad_norm"] = float(unit.last_grad_norm)
        self.samples, self.row_started = 0, now
        self._write(row, "train", {k: v for k, v in row.items() if k not in ("kind", "step")})

    def on_eval_start(self, state: Any, unit: Any) -> None:
        """Start the clock of an evaluation."""
        self.eval_started = time.perf_counter()

    def on_eval_end(self, state: Any, unit: Any) -> None:
        """Write the row of an evaluation."""
        splits = evaluation_metrics(unit)
        now = time.perf_counter()
        progress = getattr(unit, "train_progress", None)
        row = {
            "kind": "eval",
            "step": progress.num_steps_completed if progress else 0,
            "seconds": round(self.seconds_before + now - self.started, 3),
            "eval_seconds": round(now - self.eval_started, 3),
            "splits": splits,
        }
        flat = {f"{split}/{k}": v for split, values in splits.items() for k, v in values.items()}
        self._write(row, "val", flat)
        self.row_started, self.samples = now, 0

    def on_train_end(self, state: Any, unit: Any) -> None:
        """Close."""
        self.watcher.detach()
        if self.writer:
            self.writer.close()

    def on_exception(self, state: Any, unit: Any, exc: BaseException) -> None:
        """Close."""
        self.on_train_end(state, unit)

    @staticmethod
    def _epoch(state: Any, unit: Any) -> float:
        progress = unit.train_progress
        done = progress.num_steps_completed_in_epoch / max(len(state.train_state.dataloader), 1)
        return round(progress.num_epochs_completed + done, 6)

    def _write(self, row: dict[str, Any], group: str, scalars: dict[str, float]) -> None:
        if not distutils.is_master():
            return
        metrics_file.append(self.path, row)
        if self.writer:
            for name, value in scalars.items():
                self.writer.add_scalar(f"{group}/{name}", value, row["step"])
            self.writer.flush()


def _summary_writer(log_dir: str) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "runner.callbacks.metrics.tensorboard=true needs the package tensorboard: "
            "pip install 'est-ocp[tensorboard]'"
        ) from None
    return SummaryWriter(log_dir)
