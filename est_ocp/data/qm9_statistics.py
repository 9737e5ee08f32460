"""What labels are compared with: values of free atoms, and the spread over the training set."""

from __future__ import annotations

from typing import Any

import numpy as np

from est_ocp.data.qm9_molecules import Molecules, composition
from est_ocp.qm9_targets import ELEMENTS, TARGETS


def fit_references(train: Molecules) -> np.ndarray:
    """Fit each extensive target by a sum over atoms of one value an element.

    Least squares on the training set without a constant. Elements that do not occur get zero, as
    do targets that are not extensive.

    Returns
    -------
    ndarray [5, 12], float64
        By element (:data:`est_ocp.qm9_targets.ELEMENTS`) and target, in the target's unit.
    """
    counts = composition(train)
    references = np.zeros((len(ELEMENTS), len(TARGETS)))
    columns = [i for i, target in enumerate(TARGETS.values()) if target.has_references]
    references[:, columns] = np.linalg.lstsq(counts, train.targets[:, columns], rcond=None)[0]
    return references


def statistics_of(train: Molecules, references: np.ndarray) -> dict[str, Any]:
    """Return what ``qm9.json`` keeps of the training set.

    Returns
    -------
    dict
        ``references`` target to element symbol's atomic number to value; ``mean`` and ``std`` of
        the labels less their references, in the targets' units; ``mean_natoms``.
    """
    labels = train.targets - composition(train) @ references
    return {
        "references": {
            name: {str(z): float(references[i, j]) for i, z in enumerate(ELEMENTS)}
            for j, (name, target) in enumerate(TARGETS.items())
            if target.has_references
        },
        "mean": dict(zip(TARGETS, labels.mean(0).tolist(), strict=True)),
        "std": dict(zip(TARGETS, labels.std(0).tolist(), strict=True)),
        "mean_natoms": float(train.natoms.mean()),
    }
