"""Evaluation: predictions of a checkpoint, OC20's metrics, and a report with figures."""

from __future__ import annotations

from est_ocp.evaluation.checkpoint import find_inference_checkpoint, load_unit
from est_ocp.evaluation.metrics import (
    is2re_metrics,
    mean_row,
    metrics_of,
    s2ef_metrics,
    trivial_predictions,
)
from est_ocp.evaluation.predict import PredictRunner
from est_ocp.evaluation.predictions import SplitPredictions
from est_ocp.evaluation.task import checkpoint_task, task_of

__all__ = [
    "PredictRunner",
    "SplitPredictions",
    "checkpoint_task",
    "find_inference_checkpoint",
    "is2re_metrics",
    "load_unit",
    "mean_row",
    "metrics_of",
    "s2ef_metrics",
    "task_of",
    "trivial_predictions",
]
