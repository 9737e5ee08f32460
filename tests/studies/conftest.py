"""Fixtures of the studies' tests."""

from __future__ import annotations

from tests.studies.parts import parts

__all__ = ["parts"]
