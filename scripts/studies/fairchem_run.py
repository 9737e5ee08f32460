"""fairchem's command inside this process."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path


def run_fairchem(config: str | Path, overrides: Sequence[str]) -> None:
    """Do what ``fairchem --config CONFIG OVERRIDES`` does, and leave nothing of it behind."""
    from fairchem.core._cli import main
    from fairchem.core.common import distutils
    from hydra.core.global_hydra import GlobalHydra

    distutils.cleanup()
    GlobalHydra.instance().clear()
    try:
        main(argparse.Namespace(config=str(config)), list(overrides))
    finally:
        distutils.cleanup()
        # fairchem points this at the run's log folder.
        os.environ.pop("WANDB_DIR", None)
