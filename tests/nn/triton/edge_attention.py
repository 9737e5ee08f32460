"""Compare the attention's fused path with its plain one; prints one figure a line.

Runs on a GPU where there is one, else in Triton's interpreter on the CPU, which has to be chosen
before Triton is imported: hence a program of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

import torch
from torch.utils.checkpoint import checkpoint

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from est_ocp.nn import edge_rotation
from est_ocp.nn.coefficient_index import num_frame_rows
from est_ocp.nn.edge_rotation import EdgeOrder, align_rotations, edge_order
from est_ocp.nn.graph_attention import EquiformerV2Attention
from est_ocp.nn.triton import edge_orders, edge_sum
from tests.nn.message_graph import make_attention, make_graph

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOAT = torch.float32
NODES, EDGES, LMAX, MMAX = 4, 5, 2, 1

Call = Callable[..., torch.Tensor]
Inputs = tuple[torch.Tensor, ...]


def inputs(edges: int = EDGES) -> Inputs:
    """Inputs of a random graph whose last node has no edges; rotations are any, padded matrices."""
    graph = make_graph(nodes=NODES, edges=edges, channels=16, lmax=LMAX, mmax=MMAX, dtype=FLOAT)
    rows, coefficients = num_frame_rows(LMAX, MMAX), (LMAX + 1) ** 2
    wigner = torch.randn(edges, rows, coefficients) / 3
    tensors = (graph.x, graph.atomic_numbers, graph.scalars, graph.edge_index, wigner)
    *rest, wigner = (t.to(DEVICE) for t in tensors)
    return *rest, align_rotations(wigner, edge_order(rest[3], NODES))


def attention(**options) -> EquiformerV2Attention:
    """Attention with a plain S2 activation."""
    graph = make_graph(channels=16, lmax=LMAX, mmax=MMAX, dtype=FLOAT)
    return make_attention(graph, num_points=26, fused=False, **options).to(DEVICE)


def order_of(arguments: Inputs) -> EdgeOrder:
    """Sort the edges of the inputs."""
    return edge_order(arguments[3], NODES)


def gradients(
    call: Call, module: EquiformerV2Attention, arguments: Inputs, order: EdgeOrder | None
) -> list[torch.Tensor]:
    """Result, and gradients of features, distances and parameters."""
    x, numbers, scalars, edge_index, wigner = arguments
    x, scalars = x.clone().requires_grad_(), scalars.clone().requires_grad_()
    envelope = torch.linspace(0.1, 1.0, len(scalars), device=DEVICE)
    out = call(x, numbers, scalars, edge_index, wigner, order, envelope)
    wanted = [x, scalars, *module.parameters()]
    return [out, *torch.autograd.grad(out.square().sum(), wanted)]


def compare(name: str, call: Call, module: EquiformerV2Attention, arguments: Inputs) -> None:
    """Print the largest difference, of any tensor, over that tensor's largest value."""
    fused = gradients(call, module, arguments, order_of(arguments))
    plain = gradients(module, module, arguments, None)
    errors = [
        ((a - b).abs().max() / (b.abs().max() + 1e-12)).item()
        for a, b in zip(fused, plain, strict=True)
        if b.numel()
    ]
    print(f"{name} {max(errors):.3e}")


def kept(module: EquiformerV2Attention, arguments: Inputs, order: EdgeOrder | None) -> int:
    """Bytes kept for the backward pass."""
    sizes = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = module(*arguments, order)
    assert out.requires_grad
    return sum(sizes.values())


def count_copies(name: str, call: Call, module: EquiformerV2Attention, arguments: Inputs) -> None:
    """Print the kernels' calls, and those of them that got other memory than the rotations'."""
    wigner = arguments[4]
    layouts = []

    def recorded(launch: Callable) -> Callable:
        def record(*given, **options):
            layouts.extend(
                (t.data_ptr(), t.stride())
                for t in given
                if isinstance(t, torch.Tensor) and t.shape == wigner.shape
            )
            return launch(*given, **options)

        return record

    names = ("launch_forward", "launch_backward")
    with ExitStack() as patches:
        for kernels in (edge_orders, edge_sum):
            for launch in names:
                function = recorded(getattr(kernels, launch))
                patches.enter_context(mock.patch.object(kernels, launch, function))
        gradients(call, module, arguments, order_of(arguments))
    copies = [layout for layout in layouts if layout != (wigner.data_ptr(), wigner.stride())]
    print(f"calls_{name} {len(layouts)}")
    print(f"copies_{name} {len(copies)}")


def main() -> None:
    """Compare in float32."""
    torch.backends.cuda.matmul.allow_tf32 = True
    if DEVICE == "cpu":
        edge_rotation.can_fuse = lambda x: True
    torch.manual_seed(0)
    module, arguments = attention(), inputs()
    compare("eager", module, module, arguments)
    compare("no_edges", module, module, inputs(edges=0))
    compare(
        "checkpoint",
        lambda *given: checkpoint(module, *given, use_reentrant=False),
        module,
        arguments,
    )
    compiled = torch.compile(module, dynamic=True, fullgraph=True, backend="aot_eager")
    compare("compiled", compiled, module, arguments)
    assert arguments[4].stride(1) == 12
    count_copies("eager", module, module, arguments)
    count_copies("compiled", compiled, module, arguments)
    forces = attention(lmin_out=1, lmax_out=1, out_bias=False)
    compare("forces", forces, forces, arguments)
    share = kept(module, arguments, order_of(arguments)) / kept(module, arguments, None)
    print(f"kept {share:.3f}")


if __name__ == "__main__":
    main()
