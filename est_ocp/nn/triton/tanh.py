"""The hyperbolic tangent in kernels: where ``h = z / 2``, ``silu(z) = h + h tanh(h)``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

#: How the kernels compute tanh: in Triton's own functions (interpreter, other vendors' GPUs), or by
#: one instruction, whose error of 5e-4 does not show beside the rounding of the products.
PORTABLE, INSTRUCTION = range(2)


@triton.jit
def tanh(h, TANH: tl.constexpr):
    """``tanh(h)`` in float32 in one of the two ways."""
    if TANH == 1:
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [h], dtype=tl.float32, is_pure=True, pack=1
        )
    return 2.0 * tl.sigmoid(2.0 * h) - 1.0


def tanh_kind() -> int:
    """The way to compute tanh on this machine."""
    nvidia = isinstance(tanh, triton.JITFunction) and torch.version.hip is None
    return INSTRUCTION if nvidia else PORTABLE
