"""The hyperbolic tangent in kernels: where ``h = z / 2``, ``silu(z) = h + h tanh(h)``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

#: How the kernels compute tanh: in Triton's own functions (interpreter, other vendors' GPUs), by
#: the approximate exponential and reciprocal (error 1e-7), or by one instruction (5e-4, which is
#: below the rounding of bfloat16 products).
PORTABLE, EXPONENTIAL, INSTRUCTION = range(3)


@triton.jit
def tanh(h, TANH: tl.constexpr):
    """``tanh(h)`` in float32 in one of the three ways."""
    if TANH == 2:
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [h], dtype=tl.float32, is_pure=True, pack=1
        )
    if TANH == 1:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .f32 e;
            mul.f32 e, $1, 0fC038AA3B;
            ex2.approx.ftz.f32 e, e;
            add.f32 e, e, 0f3F800000;
            rcp.approx.ftz.f32 e, e;
            fma.rn.f32 $0, e, 0f40000000, 0fBF800000;
            }
            """,
            "=f,f",
            [h],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    return 2.0 * tl.sigmoid(2.0 * h) - 1.0


def tanh_kind(dtype: torch.dtype) -> int:
    """The way to compute tanh for products of a type."""
    if not isinstance(tanh, triton.JITFunction) or torch.version.hip is not None:
        return PORTABLE
    return INSTRUCTION if dtype == torch.bfloat16 else EXPONENTIAL
