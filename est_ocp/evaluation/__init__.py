"""Evaluation: predictions of a checkpoint, OC20's metrics, and a report with figures."""

from __future__ import annotations

from est_ocp.evaluation.checkpoint import find_inference_checkpoint, load_unit
from est_ocp.evaluation.metrics import mean_row, s2ef_metrics, trivial_predictions
from est_ocp.evaluation.predict import PredictRunner
from est_ocp.evaluation.predictions import SplitPredictions

__all__ = [
    "PredictRunner",
    "SplitPredictions",
    "find_inference_checkpoint",
    "load_unit",
    "mean_row",
    "s2ef_metrics",
    "trivial_predictions",
]
