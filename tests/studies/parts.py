"""Import the scripts of studies and their parts."""

from __future__ import annotations

import pytest

from tests.script_parts import importer


@pytest.fixture(scope="module")
def parts():
    """Function that imports a script or a part of it by its name."""
    yield from importer("scripts/studies")
