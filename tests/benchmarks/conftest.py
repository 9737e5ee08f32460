"""Import the benchmarks and their parts."""

from __future__ import annotations

import pytest

from tests.script_parts import importer


@pytest.fixture(scope="module")
def bench():
    """Function that imports a benchmark or a part of it by its name."""
    yield from importer("benchmarks")
