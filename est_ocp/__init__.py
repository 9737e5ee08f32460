"""est-ocp: the Equivariant Spherical Transformer (EST, arXiv 2505.23086) for fairchem.

Importing the package registers its models and datasets with fairchem's registry where fairchem
is installed; ``est_ocp.sphere`` and ``est_ocp.nn`` work in plain PyTorch without it.
"""

from __future__ import annotations

from importlib.util import find_spec

__version__ = "0.1.0"

if find_spec("fairchem") is not None and find_spec("fairchem.core") is not None:
    from est_ocp import data, models  # noqa: F401
