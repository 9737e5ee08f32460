"""OC20's S2EF and IS2RE metrics on arrays (task definitions: arXiv 2010.09990, section 4).

Forces are judged on free atoms only. Energies are in eV, forces in eV/Angstrom; tables and files
show them in meV and meV/Angstrom (:mod:`est_ocp.evaluation.results`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from est_ocp.errors import DataError
from est_ocp.evaluation.predictions import SplitPredictions

ENERGY_THRESHOLD = 0.02
FORCE_THRESHOLD = 0.03
_NOT_FINITE = "predictions or labels are not finite; is the checkpoint sound?"
#: Metrics of each task, in the order of the tables.
NAMES = {
    "s2ef": ("energy_mae", "forces_mae", "forces_cosine", "ewt", "efwt"),
    "is2re": ("energy_mae", "ewt"),
}


def metrics_of(predictions: SplitPredictions) -> dict[str, float]:
    """Return the metrics of one split: S2EF's where it has forces, else IS2RE's."""
    if predictions.task == "s2ef":
        return s2ef_metrics(predictions)
    return is2re_metrics(predictions)


def is2re_metrics(predictions: SplitPredictions) -> dict[str, float]:
    """Return the metrics of relaxed energies.

    Returns
    -------
    dict
        ``energy_mae`` (eV) and ``ewt`` (fraction of structures with an energy error below 0.02
        eV).

    Raises
    ------
    DataError
        If there are no labels, or predictions are not finite.
    """
    error = _energy_error(predictions)
    return {
        "energy_mae": float(error.mean()),
        "ewt": float((error < ENERGY_THRESHOLD).mean()),
    }


def s2ef_metrics(predictions: SplitPredictions) -> dict[str, float]:
    """Return the metrics of one split.

    Returns
    -------
    dict
        ``energy_mae`` (eV); ``forces_mae`` (eV/Angstrom, mean over the components of all free
        atoms); ``forces_cosine`` (mean over free atoms); ``ewt`` (fraction of structures with an
        energy error below 0.02 eV); ``efwt`` (those of them whose largest force component error
        on free atoms is below 0.03 eV/Angstrom too).

    Raises
    ------
    DataError
        If there are no labels, or predictions are not finite.
    """
    if predictions.forces is None or predictions.forces_label is None:
        raise DataError("these predictions have no forces or no labels of forces to compare with")
    energy_error = _energy_error(predictions)
    p = predictions.free_atoms_only()
    force_error = np.abs(p.forces.astype(np.float64) - p.forces_label)
    if not np.isfinite(force_error).all():
        raise DataError(_NOT_FINITE)
    owner = np.repeat(np.arange(len(p)), p.natoms)
    worst = np.zeros(len(p))
    np.maximum.at(worst, owner, force_error.max(axis=1, initial=0.0))
    energy_ok = energy_error < ENERGY_THRESHOLD
    return {
        "energy_mae": float(energy_error.mean()),
        "forces_mae": float(force_error.mean()) if force_error.size else float("nan"),
        "forces_cosine": _mean_cosine(p.forces, p.forces_label),
        "ewt": float(energy_ok.mean()),
        "efwt": float((energy_ok & (worst < FORCE_THRESHOLD)).mean()),
    }


def trivial_predictions(predictions: SplitPredictions, energy: float) -> SplitPredictions:
    """Return what a model that learnt nothing predicts: one energy, and no forces.

    Parameters
    ----------
    predictions : SplitPredictions
        Whose labels to keep.
    energy : float
        Mean energy of the training set, eV.
    """
    return replace(
        predictions,
        energy=np.full(len(predictions), energy),
        forces=None if predictions.forces is None else np.zeros(predictions.forces.shape),
    )


def mean_row(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean over splits of each metric, as the leaderboard averages."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _energy_error(predictions: SplitPredictions) -> np.ndarray:
    """Return absolute errors [B], float64, checked to be finite."""
    if predictions.energy_label is None:
        raise DataError("these predictions have no labels, so there is nothing to compare with")
    error = np.abs(predictions.energy.astype(np.float64) - predictions.energy_label)
    if not np.isfinite(error).all():
        raise DataError(_NOT_FINITE)
    return error


def _mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    if not len(a):
        return float("nan")
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = np.einsum("ij,ij->i", a.astype(np.float64), b.astype(np.float64))
    return float(np.mean(dots / np.maximum(lengths, 1e-8)))
