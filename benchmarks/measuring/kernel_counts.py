"""Operations and results of known operators, from the shapes of their arguments.

An operator that is not listed counts as no operations: elementwise work, sums, sorting, copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Dims = Sequence[Sequence[int]]


def _mm(left: Sequence[int], right: Sequence[int]) -> tuple[float, float]:
    return 2.0 * math.prod(left) * right[-1], math.prod(left[:-1]) * right[-1]


def _attention(dims: Dims, products: int) -> tuple[float, float]:
    query, key = dims[0], dims[1]
    return 2.0 * products * math.prod(query) * key[-2], math.prod(query)


def _to_frames(dims: Dims) -> tuple[float, float]:
    (_, coefficients, channels), (edges, rows, _), (ends, _) = dims[:3]
    out = edges * rows * channels * ends
    return 2.0 * out * coefficients, out


def _from_frames(dims: Dims) -> tuple[float, float]:
    (edges, rows, channels), (_, _, coefficients) = dims[:2]
    return 2.0 * edges * rows * channels * coefficients, 0.0


def _to_orders(dims: Dims) -> tuple[float, float]:
    (_, coefficients, channels), (edges, rows, _), _, (ends, _) = dims[:4]
    out = edges * rows * channels * ends
    return 2.0 * out * coefficients, out


def _to_orders_backward(dims: Dims) -> tuple[float, float]:
    # Rotations once more for the radial weights' gradient, and back for the features'.
    (nodes, coefficients, channels), (edges, rows, _), _, (ends, _) = dims[1:5]
    return 4.0 * edges * rows * channels * ends * coefficients, nodes * coefficients * channels


def _weighted_backward(dims: Dims) -> tuple[float, float]:
    (edges, rows, channels), (_, _, coefficients) = dims[1:3]
    return 2.0 * edges * rows * channels * coefficients, edges * rows * channels


def _on_points(dims: Dims) -> tuple[float, float]:
    _, (edges, _, channels), (points, rows), (rows_out, _) = dims[:4]
    return 2.0 * edges * channels * points * (rows + rows_out), edges * channels * rows_out


def _on_points_backward(dims: Dims) -> tuple[float, float]:
    _, _, (edges, _, channels), (points, rows), (rows_out, _) = dims[:5]
    return 2.0 * edges * channels * points * (2 * rows + rows_out), edges * channels * rows


def _experts(dims: Dims) -> tuple[float, float]:
    x, hidden = dims[0], dims[2][0]
    return 4.0 * math.prod(x) * hidden, math.prod(x)


def _experts_backward(dims: Dims) -> tuple[float, float]:
    # The hidden activations again, their gradient and that of the input; those of the weights
    # are matrix products of their own.
    x, hidden = dims[1], dims[3][0]
    return 6.0 * math.prod(x) * hidden, math.prod(x)


def _messages(dims: Dims) -> tuple[float, float]:
    (edges, _), x = dims[0], dims[4]
    return 4.0 * edges * math.prod(x[1:]), math.prod(x)


def _messages_backward(dims: Dims) -> tuple[float, float]:
    (edges, width), (nodes, _), x = dims[1], dims[2], dims[5]
    return 8.0 * edges * math.prod(x[1:]), 2 * (edges + nodes) * width + math.prod(x)


def _products(dims: Dims) -> tuple[float, float]:
    # The product, and both parts along the edge.
    (_, rows, channels), (_, edges) = dims[0], dims[3]
    return 6.0 * edges * rows * channels, edges * channels


def _products_backward(dims: Dims) -> tuple[float, float]:
    (edges, _), (nodes, rows, channels) = dims[0], dims[1]
    return 12.0 * edges * rows * channels, 2 * nodes * rows * channels


def _paths(blocks: Dims, matrices: Dims) -> tuple[float, float]:
    pairs = list(zip(blocks, matrices, strict=True))
    operations = sum(2.0 * math.prod(matrix) * block[-1] for block, matrix in pairs)
    return operations, sum(math.prod(matrix[:2]) * block[-1] for block, matrix in pairs)


def _paths_backward(blocks: Dims, matrices: Dims) -> tuple[float, float]:
    # Products again for the gradient of the weights.
    return 2.0 * _paths(blocks, matrices)[0], sum(math.prod(block) for block in blocks)


def _gated(dims: Dims) -> tuple[float, float]:
    # No products; scalars are in one tensor with what the sigmoids are taken of.
    blocks, (nodes, _, channels) = dims[:2]
    return 0.0, nodes * channels + sum(math.prod(block) for block in blocks)


def _gated_backward(dims: Dims) -> tuple[float, float]:
    _, blocks, pre_activation, gate = dims[:4]
    results = (*blocks, pre_activation, gate)
    return 0.0, sum(math.prod(result) for result in results)


def _functions_silu(dims: Dims) -> tuple[float, float]:
    (nodes, rows, channels), (_, points, _), _, _, (rows_out, _) = dims[:5]
    return 2.0 * nodes * points * channels * (rows + rows_out), nodes * rows_out * channels


def _functions_silu_backward(dims: Dims) -> tuple[float, float]:
    # To the points again, gradients of the rows and of the functions.
    (_, _, rows_out, _), (nodes, rows, channels), (_, points, own) = dims[:3]
    operations = 2.0 * nodes * points * channels * (2 * rows + rows_out + own)
    return operations, nodes * (rows * channels + points * own)


def _functions_attention(dims: Dims) -> tuple[float, float]:
    # The number of heads is not among the shapes: one.
    (nodes, rows, channels), _, (points, _) = dims[:3]
    logits = rows * rows * (channels + points) + points * points * rows
    return 2.0 * nodes * (logits + points * points * (rows - 1)), nodes * points * (rows - 1)


def _functions_attention_backward(dims: Dims) -> tuple[float, float]:
    forward, _ = _functions_attention(dims[1:])
    # Logits again, and two gradients for every product.
    return 2.5 * forward, 2.0 * math.prod(dims[1])


def _functions_norm(dims: Dims) -> tuple[float, float]:
    (nodes, rows, channels), _, (_, own, _), (_, points, _) = dims[:4]
    result = nodes * (rows + own) * channels
    return 2.0 * points * result, result


def _functions_norm_backward(dims: Dims) -> tuple[float, float]:
    # Values at the points, gradients of the rows and of the functions.
    (nodes, rows, channels), _, (_, own, _), (_, points, _) = dims[1:5]
    operations = 2.0 * nodes * points * channels * (2 * (rows + own) + own)
    return operations, nodes * ((rows + own) * channels + points * own)


_KNOWN: dict[str, Callable[[Dims], tuple[float, float]]] = {
    "aten::mm": lambda dims: _mm(dims[0], dims[1]),
    "aten::bmm": lambda dims: _mm(dims[0], dims[1]),
    "aten::addmm": lambda dims: _mm(dims[1], dims[2]),
    "aten::baddbmm": lambda dims: _mm(dims[1], dims[2]),
    "est_ocp::to_frames": _to_frames,
    "est_ocp::from_frames": _from_frames,
    "est_ocp::weighted_from_frames": _from_frames,
    "est_ocp::weighted_from_frames_backward": _weighted_backward,
    "est_ocp::to_orders": _to_orders,
    "est_ocp::to_orders_backward": _to_orders_backward,
    "est_ocp::silu_on_points": _on_points,
    "est_ocp::silu_on_points_backward": _on_points_backward,
    "est_ocp::spherical_experts": _experts,
    "est_ocp::spherical_experts_backward": _experts_backward,
    "est_ocp::gated_degrees": _gated,
    "est_ocp::gated_degrees_backward": _gated_backward,
    "est_ocp::silu_on_functions": _functions_silu,
    "est_ocp::silu_on_functions_backward": _functions_silu_backward,
    "est_ocp::attention_functions": _functions_attention,
    "est_ocp::attention_functions_backward": _functions_attention_backward,
    "est_ocp::functions_norm": _functions_norm,
    "est_ocp::functions_norm_backward": _functions_norm_backward,
    "est_ocp::tensor_messages": _messages,
    "est_ocp::tensor_messages_backward": _messages_backward,
    "est_ocp::tensor_products": _products,
    "est_ocp::tensor_products_backward": _products_backward,
    "est_ocp::path_products": lambda dims: _paths(dims[0], dims[1]),
    "est_ocp::path_products_backward": lambda dims: _paths_backward(dims[1], dims[2]),
}


def known(operator: str) -> bool:
    """Whether an operator's work can be counted."""
    return operator in _KNOWN or "scaled_dot_product" in operator


def _count(operator: str, dims: Dims) -> tuple[float, float]:
    if not dims:
        return 0.0, 0.0
    if "scaled_dot_product" in operator:
        backward = "backward" in operator
        # Backward: scores again, and gradients of values, weights, queries and keys.
        return _attention(dims[1:] if backward else dims, 5 if backward else 2)
    return _KNOWN[operator](dims) if operator in _KNOWN else (0.0, 0.0)


def operations(operator: str, dims: Dims) -> float:
    """Operations of a call, two for a multiply-add of a product.

    Parameters
    ----------
    operator : str
        Its name, such as ``aten::mm``.
    dims : sequence of sequence of int
        Shapes of its arguments, empty for those that are no tensors.
    """
    return _count(operator, dims)[0]


def result_elements(operator: str, dims: Dims) -> float:
    """Elements of a call's result; 0 where they are unknown or among the arguments."""
    return _count(operator, dims)[1]
