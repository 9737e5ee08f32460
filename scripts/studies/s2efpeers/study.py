"""What runs next, and what is kept of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from csv_rows import append, read

from s2efpeers import report
from s2efpeers.gpu_queue import Outcome
from s2efpeers.models import base_of
from s2efpeers.plan import Plan
from s2efpeers.training import Settings, Training, fast_modes

#: Seconds that a training needs besides its time, until one has told: start and evaluations, and
#: compilation of layers.
OVERHEAD, COMPILING = 45.0, 150.0
#: Seconds in which a process imports everything, which a training does not count.
STARTING = 15.0


class Study:
    """Chooses what runs next and keeps what comes.

    Parameters
    ----------
    out : path
    plan : Plan
    fast : sequence of str
        Overrides of fast paths, see :func:`s2efpeers.training.fast_modes`.
    retry : bool
        Try again what failed in an earlier call.
    """

    def __init__(self, out: Path, plan: Plan, fast: Sequence[str], retry: bool) -> None:
        self.out, self.plan, self.fast = out, plan, fast
        self.begun: set[tuple[str, str, str, str]] = set()
        self.failed: list[Training] = []
        self.ran = self.later = 0
        self.curves = read(out / "curves.csv")
        self.trainings = read(out / "trainings.csv")
        self.done = {_key(row) for row in self.trainings}
        #: Fast paths that failed, by model, and trainings that failed without any.
        self.broken: dict[str, set[str]] = {}
        self.lost: set[tuple[str, str, str, str]] = set()
        for row in [] if retry else read(out / "failures.csv"):
            self._note_failure(_key(row), row["fast"])

    def wanted(self) -> list[Training]:
        """Trainings that are missing now, most important first."""
        best = self.plan.best_rates(self.curves, self.lost)
        everything = [*self.plan.sweep(), *self.plan.trainings(best)]
        return [t for t in everything if t.key not in self.done | self.lost]

    def take(self, left: float, settings: Settings) -> Training | None:
        """Next training that ends in time, or None."""
        self.later = 0
        for training in self.wanted():
            if training.key in self.begun:
                continue
            training = dataclasses.replace(training, fast=self._fast(training.model))
            if settings.seconds_of(training.stage) + self._overhead(training) > left:
                self.later += 1
                continue
            self.begun.add(training.key)
            print(f"== {training.name}", flush=True)
            return training
        return None

    def keep(self, outcome: Outcome) -> None:
        """Append what a training gave to the CSV files."""
        training = outcome.training
        if outcome.result is None:
            last = outcome.error.strip().splitlines()[-1:] or [""]
            mode = " ".join(training.fast) or "none"
            row = dict(zip(report.KEY, training.key, strict=True))
            append(
                self.out / "failures.csv", report.FAILURES, [row | {"fast": mode, "error": last[0]}]
            )
            self._note_failure(training.key, mode)
            print(f"   {training.name} failed ({mode}):\n{outcome.error}", flush=True)
            if training.fast:
                self.begun.discard(training.key)
            else:
                self.failed.append(training)
            return
        row, curve = outcome.result["row"], outcome.result["curve"]
        append(self.out / "curves.csv", report.CURVES, curve)
        append(self.out / "trainings.csv", report.TRAININGS, [row])
        self.curves = read(self.out / "curves.csv")
        self.trainings = read(self.out / "trainings.csv")
        self.done.add(training.key)
        self.ran += 1
        mean = next(r for r in reversed(curve) if r["split"] == "mean")
        print(
            f"   {training.name}: {row['parameters']:,} parameters, {row['steps']} steps, "
            f"{row['steps_per_second']} a second, {row['all_seconds']} s in all, "
            f"{row['peak_gib']} GiB, energy {1e3 * mean['energy_mae']:.1f} meV, "
            f"forces {1e3 * mean['forces_mae']:.1f} meV/A",
            flush=True,
        )

    def _note_failure(self, key: tuple[str, str, str, str], mode: str) -> None:
        if mode == "none":
            self.lost.add(key)
        else:
            self.broken.setdefault(base_of(key[1]), set()).add(mode)

    def _fast(self, model: str) -> tuple[str, ...]:
        """Fastest paths of a model that have not failed."""
        broken = self.broken.get(base_of(model), set())
        modes = fast_modes(model, self.fast)
        return next(mode for mode in modes if not mode or " ".join(mode) not in broken)

    def _overhead(self, training: Training) -> float:
        """Longest that such a training has needed besides its time."""
        known = [
            float(row["all_seconds"]) - float(row["train_seconds"])
            for row in self.trainings
            if base_of(row["model"]) == base_of(training.model)
            and row["fast"] == (" ".join(training.fast) or "none")
        ]
        if known:
            return STARTING + max(known)
        return COMPILING if any("compile" in word for word in training.fast) else OVERHEAD


def _key(row: dict[str, str]) -> tuple[str, str, str, str]:
    return tuple(row[name] for name in report.KEY)
