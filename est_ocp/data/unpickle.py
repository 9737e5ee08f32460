"""Read pickled OC20 records without running any code that they name.

OC20's LMDB values are pickled ``torch_geometric`` ``Data`` objects, and a pickle may call anything
that it can import. Only the few constructors that such records need are let through; every
other name is refused before it is imported. ``torch_geometric`` itself is never executed: an inert
stand-in collects the fields.
"""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from est_ocp.data import _pickled_numpy, _pickled_torch
from est_ocp.errors import DataError


class PygRecord:
    """Stand-in for every ``torch_geometric.data`` class; it only collects pickled state.

    PyG 1.x keeps the fields in the object's ``__dict__``; PyG 2.x in ``_store._mapping``.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> PygRecord:
        record = object.__new__(cls)
        object.__setattr__(record, "state", {})
        return record

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        # Classes with __slots__ pickle a pair (dict, dict of slots).
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.state.update(part)

    def fields(self) -> dict[str, Any]:
        """Return the record's own fields, without private ones and without empty ones."""
        state = self.state
        if isinstance(state.get("_store"), PygRecord):
            state = state["_store"].state
        if isinstance(state.get("_mapping"), dict):
            state = state["_mapping"]
        return {
            key: value
            for key, value in state.items()
            if isinstance(key, str) and not key.startswith("_") and value is not None
        }


class UndecodedTensor:
    """A tensor whose values are decoded only when asked for (see :func:`count_atoms`)."""

    def __init__(self, payload: bytes | None, offset: int, size: tuple[int, ...], *rest: Any):
        self.payload, self.offset, self.size, self.rest = payload, offset, tuple(size), rest

    def decode(self) -> torch.Tensor:
        """Return the tensor."""
        if not isinstance(self.payload, bytes):
            raise DataError("holds a tensor without a storage")
        storage = _load_storage(self.payload)
        return _pickled_torch.rebuild_tensor(storage, self.offset, self.size, *self.rest)


class _Call:
    """A function that a pickle may call but not alter (pickle's BUILD sets attributes)."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function cannot take state")


def _load_storage(payload: bytes) -> torch.Tensor:
    return _pickled_torch.read_storage(payload, _RecordUnpickler)


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    """``_codecs.encode`` for the one codec by which protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise DataError(_refusal(f"_codecs.encode to {encoding!r}"))
    return text.encode("latin1")


def _refusal(name: str) -> str:
    return (
        f"refers to '{name}', which is not part of an OC20 record and was not run; "
        "use files from a trusted source, or write them again with est_ocp.data.write_oc20_lmdb"
    )


def _allow_list() -> dict[tuple[str, str], Any]:
    plain = (set, frozenset, complex, bool, int, float, list, tuple, dict)
    allowed: dict[tuple[str, str], Any] = {
        (module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in plain
    }
    for name in ("OrderedDict", "defaultdict", "deque"):
        allowed[("collections", name)] = getattr(collections, name)
    allowed[("_codecs", "encode")] = _Call(_encode_latin1)

    for core in ("numpy.core", "numpy._core"):
        allowed[(f"{core}.multiarray", "_reconstruct")] = _Call(_pickled_numpy.reconstruct)
        allowed[(f"{core}.multiarray", "scalar")] = _Call(_pickled_numpy.scalar)
        allowed[(f"{core}.numeric", "_frombuffer")] = _Call(_pickled_numpy.from_buffer)
    # Only ever an argument of _reconstruct, which ignores it.
    allowed[("numpy", "ndarray")] = "numpy.ndarray"
    allowed[("numpy", "dtype")] = _Call(_pickled_numpy.PickledDtype)

    allowed[("torch", "Size")] = torch.Size
    allowed[("torch", "device")] = torch.device
    allowed |= {
        ("torch", name): value
        for name, value in vars(torch).items()
        if isinstance(value, torch.dtype)
    }
    for name, dtype in _pickled_torch.STORAGE_DTYPES.items():
        allowed["torch", name] = dtype
    allowed[("torch._utils", "_rebuild_tensor")] = _Call(_pickled_torch.rebuild_tensor)
    allowed[("torch._utils", "_rebuild_tensor_v2")] = _Call(_pickled_torch.rebuild_tensor)
    allowed[("torch.storage", "_load_from_bytes")] = _Call(_load_storage)
    return allowed


class _RecordUnpickler(pickle.Unpickler):
    """Unpickler that resolves names by table only, never by import."""

    allowed = _allow_list()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.allowed:
            return self.allowed[module, name]
        if module == "torch_geometric.data" or module.startswith("torch_geometric.data."):
            return PygRecord
        raise DataError(_refusal(f"{module}.{name}"))

    def persistent_load(self, pid: Any) -> Any:
        raise DataError(_refusal("a persistent id"))


class _ShapeUnpickler(_RecordUnpickler):
    """The same, leaving tensors undecoded: some ten times faster where only sizes matter."""

    allowed = _RecordUnpickler.allowed | {
        ("torch._utils", "_rebuild_tensor"): _Call(UndecodedTensor),
        ("torch._utils", "_rebuild_tensor_v2"): _Call(UndecodedTensor),
        ("torch.storage", "_load_from_bytes"): _Call(lambda payload: payload),
    }


def _load(unpickler: type[pickle.Unpickler], payload: bytes) -> Any:
    try:
        return unpickler(io.BytesIO(payload)).load()
    except DataError:
        raise
    except Exception as error:
        # A damaged pickle can fail in any constructor; which one does not help the reader.
        raise DataError(
            f"cannot be decoded ({type(error).__name__}: {error}); "
            "the file is damaged: fetch or write it again"
        ) from error


def safe_loads(payload: bytes) -> Any:
    """Unpickle an OC20 LMDB value by an allow-list of constructors.

    Parameters
    ----------
    payload : bytes
        A pickle of numbers, strings, containers, NumPy arrays, torch tensors and
        ``torch_geometric`` data objects (any version).

    Returns
    -------
    object
        The value; ``torch_geometric`` objects come back as :class:`PygRecord`.

    Raises
    ------
    DataError
        If the pickle names anything else (the message gives the name, nothing is run), also
        inside a nested tensor payload, or if it cannot be decoded.
    """
    return _load(_RecordUnpickler, payload)


def as_fields(value: Any) -> dict[str, Any]:
    """Return a record's fields from what :func:`safe_loads` gave.

    Raises
    ------
    DataError
        If the value is neither a ``torch_geometric`` object nor a dict.
    """
    if isinstance(value, PygRecord):
        return value.fields()
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if item is not None}
    raise DataError(
        f"holds a {type(value).__name__}, not a torch_geometric Data object or a dict of fields"
    )


def undecoded_fields(payload: bytes) -> dict[str, Any]:
    """Return a record's fields with its tensors as :class:`UndecodedTensor`.

    Raises
    ------
    DataError
        As :func:`safe_loads` and :func:`as_fields`.
    """
    return as_fields(_load(_ShapeUnpickler, payload))


def count_atoms(payload: bytes) -> int:
    """Return the number of atoms of a pickled record without decoding its tensors.

    Raises
    ------
    DataError
        As :func:`safe_loads`, or if the record has neither ``natoms`` nor ``pos``.
    """
    return atoms_in(undecoded_fields(payload))


def atoms_in(fields: dict[str, Any]) -> int:
    """Return the number of atoms of a record from :func:`undecoded_fields`."""
    pos = fields.get("pos")
    if isinstance(pos, UndecodedTensor) and len(pos.size) == 2:
        return int(pos.size[0])
    if isinstance(pos, np.ndarray):
        return int(pos.shape[0])
    if isinstance(fields.get("natoms"), int | np.integer):
        return int(fields["natoms"])
    raise DataError("has neither 'natoms' nor 'pos'; it is not an OC20 structure record")
