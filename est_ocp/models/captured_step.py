"""One step of training, forward and backward, as two CUDA graphs of a padded size.

PyTorch's ``make_graphed_callables`` does the same for modules, with three differences that count
here. It keeps the warm-up's nodes of autograd alive, which the parameters then share with later
steps and with ``DistributedDataParallel``; it hands out gradients that lie in its own memory, so
that a second backward pass before the optimiser's step changes the first one's; and each graph of
it keeps gradients of its own. Here parameters are replaced by leaves of their own while a step is
captured, all sizes share one set of gradients, and autograd gets copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from est_ocp.models.capture_context import refusing_to_wait, uncached_autocast
from est_ocp.models.graph import Graph
from est_ocp.models.padding import PaddedBatch, Padding

Forward = Callable[[Any], dict[str, Any]]


class Leaves:
    """The parameters that a model trains, as leaves of autograd in the same memory.

    A pass with the leaves in the parameters' places leaves no trace on the parameters: neither
    nodes that accumulate gradients nor hooks are touched.

    Parameters
    ----------
    model : Module

    Attributes
    ----------
    parameters : list of Parameter
        Those that require a gradient.
    twins : list of Parameter
        The leaves.
    gradients : list of Tensor
        Where graphs leave the gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.twins = [nn.Parameter(p.detach()) for p in self.parameters]
        self.gradients = [torch.empty_like(p, requires_grad=False) for p in self.parameters]
        twin_of = dict(zip(self.parameters, self.twins, strict=True))
        self._places = [
            (module._parameters, name, parameter, twin_of[parameter])
            for module in model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.requires_grad
        ]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model computes with the leaves."""
        for holder, name, _, twin in self._places:
            holder[name] = twin
        try:
            yield
        finally:
            for holder, name, parameter, _ in self._places:
                holder[name] = parameter


class CapturedStep:
    """Forward and backward pass of a model over batches of one padded size.

    Parameters
    ----------
    leaves : Leaves
        Of the model.
    padding : Padding
    data : AtomicData
        A first batch.
    graph : Graph
        Its edges.

    Attributes
    ----------
    rows : Tensor [2], int64
        Atoms and edges of the batch at hand, without filling; none in warm-ups.
    """

    def __init__(self, leaves: Leaves, padding: Padding, data: Any, graph: Graph) -> None:
        self.leaves = leaves
        self.padding = padding
        self.inputs: PaddedBatch = padding(data, graph)
        self.rows = data.natoms.new_zeros(2)
        self.outputs: list[torch.Tensor] = []
        self.output_gradients: list[torch.Tensor] = []
        self.used: list[bool] = []
        self._live: list[torch.Tensor] = []

    def record(self, forward: Forward, stream: torch.cuda.Stream, pool: Any) -> None:
        """Warm up, in which kernels are compiled and chosen, and capture both passes.

        Parameters
        ----------
        forward : callable
            Padded batch to nested dictionary of tensors.
        stream : torch.cuda.Stream
        pool : tuple
            Memory that graphs share, of which one at a time is between its passes.
        """
        current = torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self.run(forward)
            with refusing_to_wait():
                self.run(forward)
        current.wait_stream(stream)
        # Other threads, such as loaders' that pin memory, may go on.
        options = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        self._graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graphs[0], **options):
            self.run_forward(forward)
        with torch.cuda.graph(self._graphs[1], **options):
            self.run_backward()
        self.keep()

    def run(self, forward: Forward) -> None:
        """Both passes, one after the other, leaving nothing but gradients."""
        self.run_forward(forward)
        self.run_backward()
        self._live = []

    def run_forward(self, forward: Forward) -> None:
        """The forward pass, with its nodes of autograd."""
        with self.leaves.in_place(), uncached_autocast(self.rows.device.type):
            outputs = forward(self.inputs)
        self._live, self._spec = tree_flatten(outputs)
        if not self.output_gradients:
            self.output_gradients = [torch.zeros_like(o) for o in self._live]

    def run_backward(self) -> None:
        """The backward pass, into the shared gradients."""
        pairs = zip(self._live, self.output_gradients, strict=True)
        trained = [pair for pair in pairs if pair[0].requires_grad]
        if not trained:
            raise RuntimeError("no output depends on a parameter that is trained")
        live, upstream = zip(*trained, strict=True)
        with torch.autocast(self.rows.device.type, enabled=False):
            found = torch.autograd.grad(live, self.leaves.twins, upstream, allow_unused=True)
        self.used = [gradient is not None for gradient in found]
        with torch.no_grad():
            torch._foreach_copy_(self._used_gradients(), [g for g in found if g is not None])

    def keep(self) -> None:
        """Keep the outputs' memory and let go of the nodes of autograd."""
        self.differentiable = [output.requires_grad for output in self._live]
        self.outputs = [output.detach() for output in self._live]
        self._live = []

    def replay_forward(self) -> None:
        """Compute :attr:`outputs` from :attr:`inputs`."""
        self._graphs[0].replay()

    def replay_backward(self) -> None:
        """Compute the leaves' gradients from :attr:`output_gradients`."""
        self._graphs[1].replay()

    def __call__(self, data: Any, graph: Graph) -> tuple[dict[str, Any], Pending]:
        """Return the outputs of a batch, and what says whether their backward pass has been run.

        The outputs are part of autograd's graph like those of the model itself. Memory is the
        graph's until the backward pass: no other step of the same pool may come between.
        """
        atoms, graphs = data.pos.shape[0], data.natoms.numel()
        with torch.no_grad():
            self.padding(data, graph, out=self.inputs)
            for rows, number in zip(self.rows, (atoms, graph.vec.shape[0]), strict=True):
                rows.fill_(number)
        rows = [self.padding.rows(output, atoms, graphs) for output in self.outputs]
        pending = Pending(self, rows)
        outputs = _Replay.apply(pending, *self.leaves.parameters)
        return tree_unflatten(list(outputs), self._spec), pending

    def copied_gradients(self) -> Iterator[torch.Tensor | None]:
        """Copies of the gradients, None for parameters that the outputs do not depend on."""
        kept = self._used_gradients()
        copies = [torch.empty_like(gradient) for gradient in kept]
        torch._foreach_copy_(copies, kept)
        fresh = iter(copies)
        for used in self.used:
            yield next(fresh) if used else None

    def _used_gradients(self) -> list[torch.Tensor]:
        pairs = zip(self.leaves.gradients, self.used, strict=True)
        return [gradient for gradient, used in pairs if used]


@dataclass(eq=False)
class Pending:
    """A step whose forward pass has been replayed; alive as long as its graph of autograd.

    Attributes
    ----------
    step : CapturedStep
    rows : list of int
        Rows of each output without the filling's.
    done : bool
        Whether the backward pass has been replayed.
    """

    step: CapturedStep
    rows: list[int]
    done: bool = False

    def outputs(self) -> tuple[torch.Tensor, ...]:
        """Copies of the outputs."""
        pairs = zip(self.step.outputs, self.rows, strict=True)
        return tuple(output[:rows].clone() for output, rows in pairs)

    def take(self, upstream: Sequence[torch.Tensor | None]) -> None:
        """Set the gradients of the outputs; the filling's are zero."""
        for target, gradient, rows in zip(
            self.step.output_gradients, upstream, self.rows, strict=True
        ):
            target[rows:].zero_()
            if gradient is None:
                target.zero_()
            else:
                target[:rows].copy_(gradient)


class _Replay(torch.autograd.Function):
    """Replay a step's graphs as one node of autograd, from the parameters to the outputs."""

    @staticmethod
    def forward(ctx: Any, pending: Pending, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.pending = pending
        ctx.set_materialize_grads(False)
        pending.step.replay_forward()
        outputs = pending.outputs()
        pairs = zip(outputs, pending.step.differentiable, strict=True)
        ctx.mark_non_differentiable(*(output for output, wanted in pairs if not wanted))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        pending = ctx.pending
        if pending.done:
            raise RuntimeError(
                "the backward pass of a step that is replayed as a CUDA graph can be run once "
                "only; set model.cuda_graphs to inference to keep its graph of autograd"
            )
        pending.done = True
        pending.take(upstream)
        pending.step.replay_backward()
        return None, *pending.step.copied_gradients()
