"""Errors that users meet: one clear sentence naming the thing and the remedy."""

from __future__ import annotations

import difflib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable

#: What reading a damaged ``.npz`` can raise: zip's, zlib's and NumPy's parser of headers.
ARCHIVE_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    MemoryError,
    RuntimeError,  # encrypted or of an unknown method, says a damaged header
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class ESTError(Exception):
    """Base class of every error that est-ocp raises on purpose."""

    def __init__(self, *args: object) -> None:
        # torch raises an error of a loader's worker anew, with the worker's traceback for a
        # message; the sentence stands at its end.
        text = args[0] if args else None
        if isinstance(text, str) and text.startswith("Caught ") and "\nOriginal Trace" in text:
            args = (text.strip().rpartition(f"{type(self).__name__}: ")[2],)
        super().__init__(*args)


class ConfigError(ESTError, ValueError):
    """A configuration key or value that cannot be used."""


class DataError(ESTError, ValueError):
    """A dataset, record or structure that cannot be used."""


class CheckpointError(ESTError, ValueError):
    """A checkpoint that is missing, damaged or of another model."""


def unknown_keys(given: Iterable[str], allowed: Iterable[str], where: str) -> None:
    """Refuse keys that are not known, naming the nearest valid one.

    Parameters
    ----------
    given : iterable of str
        Keys found in a configuration.
    allowed : iterable of str
        Keys that may appear.
    where : str
        What the keys configure, for the message, e.g. ``"backbone.graph"``.

    Raises
    ------
    ConfigError
        If any given key is not allowed.
    """
    allowed = sorted(allowed)
    for key in given:
        if key in allowed:
            continue
        near = difflib.get_close_matches(key, allowed, n=1, cutoff=0.5)
        valid = f"valid keys: {', '.join(allowed)}" if allowed else "it takes none"
        hint = f"did you mean '{near[0]}'?" if near else valid
        raise ConfigError(f"unknown key '{key}' in {where}; {hint}")
