"""Gated activation of features whose degrees are tensors of their own, weighed by experts' weights.

Memory bounds it. One kernel for all degrees reads every feature once, in the widest loads, and all
orders of a degree before it writes the first, so that many loads are in flight. The backward pass
computes the sigmoids again; there a program has all channels of its experts, so that the gradient
of an expert's weight is a sum within it. Sums have a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from est_ocp.nn.triton.launch import LOAD_BYTES, dense_rows

#: Threads of a warp.
WARP = 32


class DegreesLaunch(NamedTuple):
    """How a kernel is launched.

    Attributes
    ----------
    num_warps : int
        Warps of a program; a thread makes one load of the widest kind for each row.
    row_bytes : int
        Most bytes of an expert's channels at once: those of a warp, or a fraction of them.
    """

    num_warps: int
    row_bytes: int = WARP * LOAD_BYTES

    def options(self, hidden: int, itemsize: int) -> dict[str, int]:
        """Pairs of a node and an expert, and channels, of a program; Triton's options."""
        block = min(self.row_bytes // itemsize, triton.next_power_of_2(hidden))
        elements = self.num_warps * WARP * LOAD_BYTES // itemsize
        # Nothing is left for Triton to pipeline: all loads of a degree are in flight anyway.
        return {
            "PAIRS": elements // block,
            "BLOCK": block,
            "num_warps": self.num_warps,
            "num_stages": 1,
        }


#: Settings of the two kernels.
FORWARD, BACKWARD = DegreesLaunch(4), DegreesLaunch(4)


@triton.jit
def _load_orders(ptr, step, mask, ORDERS: tl.constexpr):
    """Rows of all orders, as they are."""
    rows = ()
    for order in tl.static_range(ORDERS):
        # Triton cannot unpack.
        rows = rows + (tl.load(ptr + order * step, mask=mask, other=0.0),)  # noqa: RUF005
    return rows


@triton.jit
def _pairs(gate_ptr, gate_stride, num_pairs, EXPERTS: tl.constexpr, PAIRS: tl.constexpr):
    """Pairs of a node and an expert, which of them exist, both parts, and the experts' weights."""
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    exists = pair < num_pairs
    node, expert = (pair // EXPERTS).to(tl.int64), pair % EXPERTS
    gate = tl.load(gate_ptr + node * gate_stride + expert, mask=exists, other=0.0)
    return pair, exists, node[:, None], expert[:, None], gate.to(tl.float32)[:, None]


@triton.jit(do_not_specialize=["num_pairs"])
def _forward_kernel(
    features, gate_ptr, outs, strides, gate_stride, hidden, num_pairs,
    EXPERTS: tl.constexpr, LMAX: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a few pairs of a node and an expert, and a block of the expert's channels."""
    _, exists, node, expert, gate = _pairs(gate_ptr, gate_stride, num_pairs, EXPERTS, PAIRS)
    channels = EXPERTS * hidden
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = exists[:, None] & (c < hidden)[None, :]
    channel = expert * hidden + c[None, :]
    scalars = _load_orders(features[0] + node * strides[0] + channel, channels, mask, LMAX + 1)
    for degree in tl.static_range(LMAX + 1):
        rows = scalars
        if degree > 0:
            ptr = features[degree] + node * strides[degree] + channel
            rows = _load_orders(ptr, channels, mask, 2 * degree + 1)
        factor = tl.sigmoid(scalars[degree].to(tl.float32)) * gate
        out_ptr = outs[degree] + node * ((2 * degree + 1) * channels) + channel
        for order in tl.static_range(2 * degree + 1):
            y = rows[order].to(tl.float32) * factor
            tl.store(out_ptr + order * channels, y.to(rows[order].dtype), mask=mask)


@triton.jit(do_not_specialize=["num_pairs"])
def _backward_kernel(
    grads, features, gate_ptr, grad_features, grad_gate_ptr,
    grad_strides, strides, gate_stride, hidden, num_pairs, tiles,
    EXPERTS: tl.constexpr, LMAX: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a few pairs of a node and an expert, with all channels of the expert."""
    pair, exists, node, expert, gate = _pairs(gate_ptr, gate_stride, num_pairs, EXPERTS, PAIRS)
    kind: tl.constexpr = grad_features[0].dtype.element_ty
    channels = EXPERTS * hidden
    by_channel = tl.zeros((PAIRS, BLOCK), dtype=tl.float32)
    for tile in range(tiles):
        c = tile * BLOCK + tl.arange(0, BLOCK)
        mask = exists[:, None] & (c < hidden)[None, :]
        channel = expert * hidden + c[None, :]
        scalars = _load_orders(features[0] + node * strides[0] + channel, channels, mask, LMAX + 1)
        grad_scalars_ptr = grad_features[0] + node * ((LMAX + 1) * channels) + channel
        for degree in tl.static_range(LMAX + 1):
            ptr = grads[degree] + node * grad_strides[degree] + channel
            grad = _load_orders(ptr, channels, mask, 2 * degree + 1)
            rows = scalars
            if degree > 0:
                ptr = features[degree] + node * strides[degree] + channel
                rows = _load_orders(ptr, channels, mask, 2 * degree + 1)
            product = grad[0].to(tl.float32) * rows[0].to(tl.float32)
            for order in tl.static_range(1, 2 * degree + 1):
                product += grad[order].to(tl.float32) * rows[order].to(tl.float32)
            sigmoid = tl.sigmoid(scalars[degree].to(tl.float32))
            factor = sigmoid * gate
            by_channel += product * sigmoid
            grad_scalar = product * factor * (1.0 - sigmoid)
            if degree == 0:
                # Scalars are features as well.
                grad_scalar += grad[0].to(tl.float32) * factor
            else:
                grad_ptr = grad_features[degree] + node * ((2 * degree + 1) * channels) + channel
                for order in tl.static_range(2 * degree + 1):
                    grad_row = grad[order].to(tl.float32) * factor
                    tl.store(grad_ptr + order * channels, grad_row.to(kind), mask=mask)
            tl.store(grad_scalars_ptr + degree * channels, grad_scalar.to(kind), mask=mask)
    grad_gate = tl.sum(by_channel, axis=1).to(grad_gate_ptr.dtype.element_ty)
    tl.store(grad_gate_ptr + pair, grad_gate, mask=exists)


def _laid_out(tensors: list[Tensor]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Tensors [N, rows, E * H] as the kernels read them, and their distances between nodes."""
    tensors = tuple(dense_rows(tensor) for tensor in tensors)
    return tensors, tuple(tensor.stride(0) for tensor in tensors)


def _sizes(pre_activation: Tensor, gate: Tensor) -> tuple[int, int, int]:
    """Channels of an expert, pairs of a node and an expert, degree."""
    return pre_activation.shape[2] // gate.shape[1], gate.numel(), pre_activation.shape[1] - 1


@torch.library.custom_op("est_ocp::gated_degrees", mutates_args=())
def gated_degrees(blocks: list[Tensor], pre_activation: Tensor, gate: Tensor) -> list[Tensor]:
    """Features times the sigmoids of their degrees and the weights of their experts.

    Parameters
    ----------
    blocks : list of Tensor [N, 2 l + 1, E * H]
        Features of degrees 1 to lmax.
    pre_activation : Tensor [N, lmax + 1, E * H]
        Scalar features, which are activated by SiLU, then what the sigmoids of degrees 1 to lmax
        are taken of. Of the type of `blocks`; nodes may lie apart.
    gate : Tensor [N, E]
        Weights of the experts, of any floating type; each is for H consecutive channels.

    Returns
    -------
    list of Tensor [N, 2 l + 1, E * H]
        Degrees 0 to lmax, in the type of the features.
    """
    hidden, pairs, lmax = _sizes(pre_activation, gate)
    outs = _empty_outs(blocks, pre_activation)
    if outs[0].numel():
        features, strides = _laid_out([pre_activation, *blocks])
        gate = gate if gate.stride(1) == 1 else gate.contiguous()
        options = FORWARD.options(hidden, pre_activation.element_size())
        grid = (triton.cdiv(pairs, options["PAIRS"]), triton.cdiv(hidden, options["BLOCK"]))
        _forward_kernel[grid](
            features, gate, tuple(outs), strides, gate.stride(0), hidden, pairs,
            EXPERTS=gate.shape[1], LMAX=lmax, **options,
        )  # fmt: skip
    return outs


@torch.library.custom_op("est_ocp::gated_degrees_backward", mutates_args=())
def gated_degrees_backward(
    grads: list[Tensor], blocks: list[Tensor], pre_activation: Tensor, gate: Tensor
) -> list[Tensor]:
    """Gradients of `pre_activation`, of every block and, last, of `gate`."""
    hidden, pairs, lmax = _sizes(pre_activation, gate)
    out = _empty_gradients(blocks, pre_activation, gate)
    if out[0].numel():
        grads, grad_strides = _laid_out([grad.to(pre_activation.dtype) for grad in grads])
        features, strides = _laid_out([pre_activation, *blocks])
        gate = gate if gate.stride(1) == 1 else gate.contiguous()
        options = BACKWARD.options(hidden, pre_activation.element_size())
        _backward_kernel[(triton.cdiv(pairs, options["PAIRS"]),)](
            grads, features, gate, tuple(out[:-1]), out[-1], grad_strides, strides,
            gate.stride(0), hidden, pairs, triton.cdiv(hidden, options["BLOCK"]),
            EXPERTS=gate.shape[1], LMAX=lmax, **options,
        )  # fmt: skip
    return out


def _empty_outs(blocks: list[Tensor], pre_activation: Tensor) -> list[Tensor]:
    num_nodes, _, channels = pre_activation.shape
    scalars = pre_activation.new_empty(num_nodes, 1, channels)
    return [scalars, *(block.new_empty(block.shape) for block in blocks)]


def _empty_gradients(blocks: list[Tensor], pre_activation: Tensor, gate: Tensor) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in (pre_activation, *blocks, gate)]


@gated_degrees.register_fake
def _(blocks, pre_activation, gate):
    return _empty_outs(blocks, pre_activation)


@gated_degrees_backward.register_fake
def _(grads, blocks, pre_activation, gate):
    return _empty_gradients(blocks, pre_activation, gate)


def _keep(ctx, inputs, output):
    blocks, pre_activation, gate = inputs
    ctx.save_for_backward(*blocks, pre_activation, gate)


def _backward(ctx, grads):
    *blocks, pre_activation, gate = ctx.saved_tensors
    grad_scalars, *grad_blocks, grad_gate = gated_degrees_backward(
        list(grads), blocks, pre_activation, gate
    )
    return grad_blocks, grad_scalars, grad_gate


gated_degrees.register_autograd(_backward, setup_context=_keep)
