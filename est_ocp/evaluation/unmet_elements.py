"""Elements that a checkpoint predicts without having met them in training."""

from __future__ import annotations

import sys
from typing import Any

import torch
from ase.data import chemical_symbols
from fairchem.core.common import distutils


def tell_of_unmet(unit: Any, split: str, elements: set[int]) -> None:
    """Say on rank 0 which elements of a split the model's training has not met.

    A collective operation.

    Parameters
    ----------
    unit : MLIPPredictUnit
    split : str
    elements : set of int
        Atomic numbers of the structures that this rank has predicted.
    """
    trained = getattr(unit.model.module, "trained_elements", None)
    if trained is None:
        return
    found = torch.zeros(len(chemical_symbols), dtype=torch.int64)
    found[list(elements)] = 1
    found = distutils.all_reduce(found, device=trained.met.device)
    warning = trained.warning(found.nonzero().flatten().tolist())
    if warning is not None and distutils.is_master():
        print(f"{split}: {warning}", file=sys.stderr, flush=True)
