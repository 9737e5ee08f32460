"""NumPy's pickle constructors, restricted to arrays of plain numbers and text.

NumPy's own ``dtype.__setstate__`` trusts flags from the pickle, by which raw bytes can be taken for
object pointers; here a dtype comes from its type string alone.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from est_ocp.errors import DataError

_PLAIN_DTYPE = re.compile(r"[<>=|]?([biufcSU]\d{1,4}|[?bBhHiIlLqQefdgFDG])")


class PickledDtype:
    """A dtype as a pickle gives it: type string, then byte order by ``__setstate__``."""

    def __init__(self, text: Any, *_: Any) -> None:
        if not isinstance(text, str) or not _PLAIN_DTYPE.fullmatch(text):
            raise DataError(f"holds a NumPy array of type {text!r}; only numbers and text are read")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class PickledArray(np.ndarray):
    """An array whose pickled state names its type by a :class:`PickledDtype`."""

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, fortran, raw = state
        super().__setstate__((version, shape, _dtype(dtype), fortran, raw))


def reconstruct(*_: Any) -> PickledArray:
    """Return the empty array that ``__setstate__`` then fills."""
    return np.ndarray.__new__(PickledArray, (0,), np.int8)


def scalar(dtype: Any, raw: bytes) -> np.generic:
    """Return a NumPy scalar from its bytes."""
    return np.frombuffer(raw, _dtype(dtype))[0]


def from_buffer(buffer: Any, dtype: Any, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Return an array from its bytes, as pickle protocol 5 stores it."""
    return np.frombuffer(buffer, _dtype(dtype)).reshape(shape, order="F" if order == "F" else "C")


def _dtype(value: Any) -> np.dtype:
    if not isinstance(value, PickledDtype):
        raise DataError("holds a NumPy array without a plain type")
    return value.dtype
