"""Checks of a training config against its data, model and machine, before it costs GPU time."""

from __future__ import annotations

from est_ocp.preflight.check import Check, Report, Status
from est_ocp.preflight.preflight import preflight

__all__ = ["Check", "Report", "Status", "preflight"]
