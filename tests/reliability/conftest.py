"""Shared fixtures."""

from __future__ import annotations

from tests.training.fixtures import tiny_data, tiny_run

__all__ = ["tiny_data", "tiny_run"]
