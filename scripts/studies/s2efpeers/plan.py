"""Which trainings are to be run: first a few learning rates for each model, then the best one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from s2efpeers.models import HYBRID, PAIR, base_of
from s2efpeers.training import Training

#: A split on which learning rates are judged.
TUNING_SPLIT = "val_id"


@dataclass(frozen=True)
class Plan:
    """What is wanted.

    ``rates`` are tried for every model; one rate alone needs no trial. ``seeds`` is for the pair
    of host and EST update, ``peer_seeds`` for the others.
    """

    models: Sequence[str]
    rates: Sequence[float]
    seeds: int
    peer_seeds: int
    variants: Sequence[str] = ()

    def sweep(self) -> list[Training]:
        """Trials of learning rates, rate by rate: a cut leaves all models with as many."""
        if len(self.rates) < 2:
            return []
        models = list(dict.fromkeys([*self.models, *([HYBRID] if self.variants else [])]))
        # The middle rate first, then outwards.
        middle = sorted(self.rates)[len(self.rates) // 2]
        ordered = sorted(self.rates, key=lambda rate: abs(math.log(rate / middle)))
        return [Training("sweep", model, rate, 0) for rate in ordered for model in models]

    def trainings(self, best: dict[str, float]) -> list[Training]:
        """Trainings at the best rates known so far, most important first."""
        wanted = []
        for seed in range(max(self.seeds, self.peer_seeds)):
            for model in self.models:
                if model in best and seed < (self.seeds if model in PAIR else self.peer_seeds):
                    wanted.append(Training("main", model, best[model], seed))
        if HYBRID in best:
            wanted += [Training("variant", name, best[HYBRID], 0) for name in self.variants]
        return wanted

    def best_rates(
        self, curves: Iterable[dict[str, str]], failed: Iterable[tuple[str, str, str, str]]
    ) -> dict[str, float]:
        """Best rate of each model whose trials are all over.

        Parameters
        ----------
        curves : iterable of dict
            Rows of ``curves.csv``.
        failed : iterable of tuple
            Keys of trainings that failed; a rate that fails is not the best.
        """
        if len(self.rates) == 1:
            return dict.fromkeys({*self.models, *map(base_of, self.variants)}, self.rates[0])
        scores = tuning_scores(curves)
        over = {(key[1], key[2]) for key in failed if key[0] == "sweep"} | set(scores)
        best = {}
        for model in {*self.models, *map(base_of, self.variants)}:
            rates = [f"{rate:g}" for rate in self.rates]
            known = {rate: scores[model, rate] for rate in rates if (model, rate) in scores}
            if known and all((model, rate) in over for rate in rates):
                best[model] = float(min(known, key=known.__getitem__))
        return best


def tuning_scores(curves: Iterable[dict[str, str]]) -> dict[tuple[str, str], float]:
    """Geometric mean of energy and force MAE on the tuning split, by model and rate.

    In sqrt(eV * eV/Angstrom); a factor of the one counts like the same factor of the other.
    """
    return {
        (row["model"], row["lr"]): math.sqrt(float(row["energy_mae"]) * float(row["forces_mae"]))
        for row in curves
        if row["stage"] == "sweep" and row["split"] == TUNING_SPLIT
    }
