"""Import of scripts that lie outside the package, and of their parts, as when they are run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType


def importer(folder: str) -> Iterator[Callable[[str], ModuleType]]:
    """Function that imports by name from a folder of the repository, while a fixture lasts."""
    path = str(Path(__file__).parents[1] / folder)
    sys.path.insert(0, path)
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(path)
