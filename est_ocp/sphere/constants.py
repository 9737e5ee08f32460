"""Modules whose buffers are mathematical constants, exact in whatever dtype the module takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ConstantBuffers(nn.Module):
    """Base class of modules that hold constants computed in float64.

    A constant is a non-persistent buffer, so it follows the module to its device and is absent
    from the state dict. Unlike an ordinary buffer it is re-made from its float64 original
    whenever the module is moved or cast: ``module.double()`` gives the float64 value and not a
    widened float32 one, and ``module.bfloat16()`` or ``module.half()`` leaves it in float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self._float64_constants: dict[str, Tensor] = {}

    def register_constant(self, name: str, value: Tensor) -> None:
        """Register a constant; ``self.name`` is then the tensor in the module's dtype.

        Parameters
        ----------
        name : str
            Attribute name.
        value : Tensor
            The constant, float64, any shape. It is copied.

        Raises
        ------
        TypeError
            If the value is not float64, or has no data because it was made on the meta device.
        """
        if value.dtype != torch.float64:
            raise TypeError(f"constant '{name}' must be computed in float64, got {value.dtype}")
        if value.is_meta:
            raise TypeError(f"constant '{name}' has no data; compute it with device='cpu'")
        original = value.detach().to("cpu", copy=True)
        self._float64_constants[name] = original
        dtype = _constant_dtype(torch.get_default_dtype())
        buffer = original.to(device=torch.get_default_device(), dtype=dtype)
        self.register_buffer(name, buffer, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConstantBuffers:
        before = {name: self._buffers[name] for name in self._float64_constants}
        super()._apply(fn, recurse)
        for name, original in self._float64_constants.items():
            after = self._buffers[name]
            if after is not before[name]:
                dtype = _constant_dtype(after.dtype)
                self._buffers[name] = original.to(device=after.device, dtype=dtype)
        return self


def _constant_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float64 for float64 modules, otherwise float32: constants never go below float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
