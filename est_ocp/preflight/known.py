"""OC20's sizes and label statistics, and recognising its splits by their paths.

Sizes: OC20's dataset page, version 2 of February 2021. Statistics: the normalisers of fairchem's
published configurations (S2EF-All and IS2RE-All, adsorption energies).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

_S2EF_TRAIN = {"200k": 200_000, "2m": 2_000_000, "20m": 20_000_000, "all": 133_934_018}
_IS2RE_TRAIN = {"10k": 10_000, "100k": 100_000, "all": 460_328}
_OTHERS = {
    "s2ef": {
        "val_id": 999_866, "val_ood_ads": 999_838, "val_ood_cat": 999_809,
        "val_ood_both": 999_944, "test_id": 999_736, "test_ood_ads": 999_859,
        "test_ood_cat": 999_826, "test_ood_both": 999_973,
    },
    "is2re": {
        "val_id": 24_943, "val_ood_ads": 24_961, "val_ood_cat": 24_963, "val_ood_both": 24_987,
        "test_id": 24_948, "test_ood_ads": 24_930, "test_ood_cat": 24_965,
        "test_ood_both": 24_985,
    },
}  # fmt: skip
#: Mean and standard deviation of adsorption energies, eV.
ENERGY = {"s2ef": (-0.7554450631, 2.8873171806), "is2re": (-1.5259139538, 2.2793650627)}


@dataclass(frozen=True)
class KnownSplit:
    """A split of OC20: its task, name (``train 2m``, ``val_id``) and number of structures."""

    task: str
    name: str
    count: int


def recognise(src: str) -> KnownSplit | None:
    """Return the OC20 split that a path means, from names such as ``s2ef/2M/train``.

    The part ``s2ef`` or ``is2re``, a size and the split's name must be there in this order: OC20
    keeps its validation and test splits below ``all``.
    """
    parts = [part.lower() for part in PurePath(src).with_suffix("").parts]
    task = next((t for t in ("s2ef", "is2re") if t in parts), None)
    if task is None:
        return None
    below = parts[parts.index(task) + 1 :]
    if "all" in below:
        for name, count in _OTHERS[task].items():
            if name in below:
                return KnownSplit(task, name, count)
    if "train" in below:
        for size, count in (_S2EF_TRAIN if task == "s2ef" else _IS2RE_TRAIN).items():
            if size in below:
                return KnownSplit(task, f"train {size}", count)
    return None
