"""Whether files from others may run code: only where the user says so."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

#: Environment variable by which ``--trust`` reaches the processes of a command.
TRUST = "EST_OCP_TRUST"


def trusted(trust: bool = False) -> bool:
    """Whether checkpoints may run code: by argument, or by ``EST_OCP_TRUST=1``."""
    return trust or os.environ.get(TRUST) == "1"


@contextlib.contextmanager
def trusting(trust: bool = True) -> Iterator[None]:
    """Let this process and its children read checkpoints as they are."""
    if not trust:
        yield
        return
    with environment(TRUST, "1"):
        yield


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
