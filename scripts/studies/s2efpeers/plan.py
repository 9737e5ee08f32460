"""Which trainings are to be run: first a few learning rates for each model, then the best one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from s2efpeers.models import HYBRID, PAIR, base_of
from s2efpeers.training import Training

#: A split on which learning rates are judged.
TUNING_SPLIT = "val_id"


@dataclass(frozen=True)
class Plan:
    """What is wanted.

    ``rates`` are tried for every model that has none in ``own_rates``; one rate alone needs no
    trial. ``seeds`` is for the pair of host and EST update, ``peer_seeds`` for the others.
    """

    models: Sequence[str]
    rates: Sequence[float]
    seeds: int
    peer_seeds: int
    variants: Sequence[str] = ()
    own_rates: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def rates_of(self, model: str) -> Sequence[float]:
        """Rates that are tried for a model."""
        return self.own_rates.get(model, self.rates)

    def sweep(self) -> list[Training]:
        """Trials of learning rates, rate by rate: a cut leaves all models with as many."""
        models = list(dict.fromkeys([*self.models, *([HYBRID] if self.variants else [])]))
        ordered = [_outwards(self.rates_of(model)) for model in models]
        return [
            Training("sweep", model, rates[place], 0)
            for place in range(max(map(len, ordered)))
            for model, rates in zip(models, ordered, strict=True)
            if 1 < len(rates) > place
        ]

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
        scores = tuning_scores(curves)
        over = {(key[1], key[2]) for key in failed if key[0] == "sweep"} | set(scores)
        best = {}
        for model in {*self.models, *map(base_of, self.variants)}:
            rates = [f"{rate:g}" for rate in self.rates_of(model)]
            if len(rates) == 1:
                best[model] = float(rates[0])
                continue
            known = {rate: scores[model, rate] for rate in rates if (model, rate) in scores}
            if known and all((model, rate) in over for rate in rates):
                best[model] = float(min(known, key=known.__getitem__))
        return best


def _outwards(rates: Sequence[float]) -> list[float]:
    """The middle rate first, then the others by their distance from it."""
    middle = sorted(rates)[len(rates) // 2]
    return sorted(rates, key=lambda rate: abs(math.log(rate / middle)))


def tuning_scores(curves: Iterable[dict[str, str]]) -> dict[tuple[str, str], float]:
    """Geometric mean of energy and force MAE on the tuning split, by model and rate.

    In sqrt(eV * eV/Angstrom); a factor of the one counts like the same factor of the other.
    """
    return {
        (row["model"], row["lr"]): math.sqrt(float(row["energy_mae"]) * float(row["forces_mae"]))
        for row in curves
        if row["stage"] == "sweep" and row["split"] == TUNING_SPLIT
    }
