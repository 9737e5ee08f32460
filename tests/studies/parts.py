"""Import the scripts of studies and their parts, as when they are run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "scripts" / "studies"


@pytest.fixture(scope="module")
def parts():
    """Function that imports a script or a part of it by its name."""
    sys.path.insert(0, str(STUDIES))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(STUDIES))
