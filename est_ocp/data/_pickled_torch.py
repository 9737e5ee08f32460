"""Torch's pickle constructors, restricted to plain CPU tensors.

An ordinary pickle holds a tensor as a call of ``_rebuild_tensor_v2`` on a storage, and the storage
as the bytes of a nested ``torch.save`` in its first (not zipped) format: four pickles (magic
number, version, machine, the storage's persistent id), a list of keys, then the raw numbers.
Reading these here costs a quarter of ``torch.load(weights_only=True)``, and names what it refuses.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import torch

from est_ocp.errors import DataError

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_VERSION = 1001

#: Storage classes by the name under which torch pickles them.
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


def read_storage(payload: bytes, unpickler: type[pickle.Unpickler]) -> torch.Tensor:
    """Return a storage's numbers as a flat tensor.

    Parameters
    ----------
    payload : bytes
        What ``torch.storage._load_from_bytes`` is called with.
    unpickler : type
        The restricted unpickler for the nested pickles.

    Raises
    ------
    DataError
        If the payload is not one plain storage.
    """
    stream = io.BytesIO(payload)
    found = []

    class StorageUnpickler(unpickler):
        def persistent_load(self, pid: Any) -> None:
            found.append(pid)

    if unpickler(stream).load() != _MAGIC_NUMBER or unpickler(stream).load() != _VERSION:
        raise DataError("holds a tensor in a format that is not read; write the records again")
    machine = unpickler(stream).load()
    StorageUnpickler(stream).load()
    keys = unpickler(stream).load()
    if len(found) != 1 or len(keys) != 1 or machine.get("little_endian") is not True:
        raise DataError("holds a nested torch.save that is not one plain tensor")
    kind, dtype, _, _, count, view = found[0]
    if kind != "storage" or not isinstance(dtype, torch.dtype) or view is not None:
        raise DataError("holds a nested torch.save that is not one plain tensor")
    count = int(count)
    raw = stream.read()
    if int.from_bytes(raw[:8], "little") != count or len(raw) != 8 + count * dtype.itemsize:
        raise DataError("holds a damaged tensor; fetch or write the file again")
    if count == 0:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(raw[8:]), dtype=dtype)


def rebuild_tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> torch.Tensor:
    """Return a tensor over a storage, refusing sizes that reach beyond it."""
    if not isinstance(storage, torch.Tensor):
        raise DataError("holds a tensor without a storage")
    size, stride = tuple(size), tuple(stride)
    if min((offset, *size, *stride), default=0) < 0:
        raise DataError("holds a tensor of negative size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= storage.numel():
        raise DataError("holds a tensor that is larger than its data; fetch the file again")
    return torch.as_strided(storage, size, stride, offset)
