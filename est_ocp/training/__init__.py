"""What training adds to fairchem: a runner, callbacks and a learning-rate schedule.

Everything is addressed from YAML by its dotted path, e.g. ``est_ocp.training.ProgressBar``.
"""

from __future__ import annotations

from est_ocp.training.checkpoint import latest_checkpoint, resume_command
from est_ocp.training.expert_usage import ExpertUsageLog
from est_ocp.training.loss_weight import LinearLossWeight
from est_ocp.training.metrics_log import MetricsLog
from est_ocp.training.non_finite import StopOnNonFiniteLoss
from est_ocp.training.progress import ProgressBar
from est_ocp.training.runner import TrainRunner
from est_ocp.training.safe_checkpoint import SafeCheckpoint
from est_ocp.training.schedule import cosine_schedule
from est_ocp.training.skip_non_finite import SkipNonFiniteSteps
from est_ocp.training.sparse_logger import SparseLogger
from est_ocp.training.vector_task import VectorTask
from est_ocp.training.wall_clock import WallClockBudget, wall_clock_schedule

__all__ = [
    "ExpertUsageLog",
    "LinearLossWeight",
    "MetricsLog",
    "ProgressBar",
    "SafeCheckpoint",
    "SkipNonFiniteSteps",
    "SparseLogger",
    "StopOnNonFiniteLoss",
    "TrainRunner",
    "VectorTask",
    "WallClockBudget",
    "cosine_schedule",
    "latest_checkpoint",
    "resume_command",
    "wall_clock_schedule",
]
