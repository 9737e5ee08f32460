"""Shared fixtures."""

from __future__ import annotations

from tests.studies.parts import parts
from tests.training.fixtures import (
    tiny_data,
    tiny_is2re,
    tiny_is2re_run,
    tiny_is2rs_run,
    tiny_run,
)

__all__ = ["parts", "tiny_data", "tiny_is2re", "tiny_is2re_run", "tiny_is2rs_run", "tiny_run"]
