"""Fused GPU kernels in Triton; each has a plain PyTorch reference that runs everywhere."""

from __future__ import annotations
