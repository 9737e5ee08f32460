"""A mode that refuses what would make the host wait for a GPU, or a CUDA graph fail."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: Their result is a Python number, or its shape depends on values.
WAITING = (
    "_local_scalar_dense",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "unique",
)

#: A tensor made of Python numbers: on a GPU a copy from memory that may be gone at the replay.
#: A single number is let pass: ``x[0] = 1.0`` makes one on a CPU only.
CONSTANT = "lift_fresh"


class NoHostSync(TorchDispatchMode):
    """Raise AssertionError at an operation whose result or shape depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        name = func.overloadpacket.__name__
        waits = any(name.startswith((word, f"_{word}")) for word in WAITING)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            waits = any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        if name == "repeat_interleave" and "output_size" not in (kwargs or {}):
            waits = True
        assert not waits, f"{func} waits for the device"
        assert name != CONSTANT or not args[0].dim(), "a tensor made of Python numbers"
        return func(*args, **(kwargs or {}))
