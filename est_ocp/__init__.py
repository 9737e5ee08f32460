"""est-ocp: the Equivariant Spherical Transformer (EST, arXiv 2505.23086) for fairchem.

``est_ocp.models`` and ``est_ocp.data`` register their classes with fairchem's registry when they
are imported; importing the package does it too in a process that has loaded fairchem, and costs
nothing otherwise. ``est_ocp.sphere`` and ``est_ocp.nn`` work in plain PyTorch without fairchem.
"""

from __future__ import annotations

import sys

__version__ = "0.1.0"

if "fairchem.core" in sys.modules:
    from est_ocp import data, models  # noqa: F401
