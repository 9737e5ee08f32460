"""Use of a checkpoint: ASE's calculator, and relaxations of many structures at a time."""

from __future__ import annotations

from est_ocp.relaxation.calculator import CheckpointCalculator, load_calculator
from est_ocp.relaxation.evaluator import BatchEvaluator, Evaluator
from est_ocp.relaxation.relaxer import OPTIMIZERS, BatchedRelaxer, Relaxed

__all__ = [
    "OPTIMIZERS",
    "BatchEvaluator",
    "BatchedRelaxer",
    "CheckpointCalculator",
    "Evaluator",
    "Relaxed",
    "load_calculator",
]
