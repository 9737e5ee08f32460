"""An ASE calculator with a small S2EF model of random weights."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from est_ocp.relaxation import CheckpointCalculator, load_calculator
from tests.relaxation.checkpoints import write_checkpoint


@functools.cache
def calculator() -> CheckpointCalculator:
    """The same one for a whole process."""
    with tempfile.TemporaryDirectory() as folder:
        return load_calculator(write_checkpoint(Path(folder) / "inference_ckpt.pt"))
