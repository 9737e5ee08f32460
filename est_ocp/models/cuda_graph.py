"""Predictions replayed as CUDA graphs: for small batches, whose time goes into starting kernels."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from est_ocp.errors import ConfigError
from est_ocp.models.capture_context import capturing, precision, uncached_autocast
from est_ocp.models.graph import Graph
from est_ocp.models.padding import PaddedBatch, PaddedSize, Padding

#: When CUDA graphs are used: by predictions, by steps of training, or by both.
MODES = ("never", "inference", "training", "always")

#: Graphs that are kept, the last ones used.
MAX_GRAPHS = 8

#: A size is captured when it is met so often among so many of the last batches: a trajectory
#: meets it at once, a data set of ever new sizes hardly ever.
TIMES, AMONG = 3, 16

#: Runs before a capture: kernels are compiled and chosen in them.
WARM_UP = 2

Forward = Callable[[Any], dict[str, Any]]


def check_mode(mode: str) -> None:
    """Refuse what is no mode.

    Raises
    ------
    ConfigError
    """
    if mode not in MODES:
        raise ConfigError(f"model.cuda_graphs must be one of {', '.join(MODES)}, not '{mode}'")


def reason(error: RuntimeError) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Weights:
    """Where the parameters and buffers of a model lie, to notice when they move.

    Values that change in place need no notice: graphs read them where they are.

    Parameters
    ----------
    model : Module
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = [
            (holder, name, tensor, tensor.data_ptr())
            for module in model.modules()
            for holder in (module._parameters, module._buffers)
            for name, tensor in holder.items()
            if tensor is not None
        ]

    def unmoved(self) -> bool:
        """Whether all are the same tensors at the same addresses."""
        return all(
            holder.get(name) is tensor and tensor.data_ptr() == address
            for holder, name, tensor, address in self._places
        )


class CapturedForward:
    """One pass of a model over batches of one padded size.

    Parameters
    ----------
    forward : callable
        Padded batch to nested dictionary of tensors; must not wait for the device.
    padding : Padding
    data : AtomicData
        A first batch.
    graph : Graph
        Its edges.
    stream : torch.cuda.Stream
        For warm-up and capture.
    pool : tuple
        Memory that graphs share, which are replayed one after the other.
    """

    def __init__(
        self,
        forward: Forward,
        padding: Padding,
        data: Any,
        graph: Graph,
        stream: torch.cuda.Stream,
        pool: Any,
    ) -> None:
        self.padding = padding
        self.inputs: PaddedBatch = padding(data, graph)
        self.cuda_graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with uncached_autocast():
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    forward(self.inputs)
            torch.cuda.current_stream().wait_stream(stream)
            # Other threads, such as loaders' that pin memory, may go on.
            with torch.cuda.graph(
                self.cuda_graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ):
                self.outputs = forward(self.inputs)

    def __call__(self, data: Any, graph: Graph) -> dict[str, Any]:
        """Return the outputs of a batch; later calls do not change them."""
        with torch.cuda.device(data.pos.device):
            self.padding(data, graph, out=self.inputs)
            self.cuda_graph.replay()
            return self.padding.unpad(self.outputs, data.pos.shape[0], data.natoms.numel())


class CapturedForwards:
    """CUDA graphs of one model, one for each size and precision in which it is called.

    A captured graph reads weights by their address, so new values count at once; all are dropped
    when tensors of the model move or are replaced. Copies of the object, with copies of the
    model, start empty.

    Parameters
    ----------
    mode : {"never", "inference", "training", "always"}
        ``inference`` and ``always`` are those that count here.
    max_atoms : int
        Larger batches are never captured.

    Raises
    ------
    ConfigError
        If the mode is unknown or ``max_atoms`` negative.
    """

    def __init__(self, mode: str = "inference", max_atoms: int = 512) -> None:
        check_mode(mode)
        if max_atoms < 0:
            raise ConfigError(f"model.cuda_graph_atoms must be 0 or more, got {max_atoms}")
        self.mode = mode
        self.max_atoms = max_atoms
        self.clear()

    def clear(self) -> None:
        """Drop all graphs and their memory."""
        self._captured: OrderedDict[Hashable, CapturedForward] = OrderedDict()
        self._recent: deque[Hashable] = deque(maxlen=AMONG)
        self._weights: Weights | None = None
        self._stream = self._pool = None

    def __deepcopy__(self, memo: dict[int, Any]) -> CapturedForwards:
        return type(self)(self.mode, self.max_atoms)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.mode, self.max_atoms)

    def __len__(self) -> int:
        return len(self._captured)

    def wanted(self, data: Any) -> bool:
        """Whether a batch is one for a graph, if its size comes up often enough."""
        return (
            self.mode in ("inference", "always")
            and data.pos.is_cuda
            and data.pos.shape[0] <= self.max_atoms
            and not torch.is_grad_enabled()
            and not torch.cuda.is_current_stream_capturing()
        )

    def plainly(self) -> AbstractContextManager[None]:
        """Context of a pass without a graph: none."""
        return nullcontext()

    def __call__(
        self, model: nn.Module, forward: Forward, data: Any, graph: Graph, *state: Hashable
    ) -> dict[str, Any] | None:
        """Return ``forward`` of a batch by a graph, or None while there is no graph for it.

        Parameters
        ----------
        model : Module
            Whose weights `forward` uses.
        forward : callable
            See :class:`CapturedForward`; the same at every call.
        data : AtomicData
        graph : Graph
            Of `data`.
        *state
            What else decides on the kernels.
        """
        size = PaddedSize.of(data.pos.shape[0], graph.vec.shape[0], data.natoms.numel())
        key = (size, data.pos.dtype, data.pos.device, *precision(), *state)
        if self._weights is not None and not self._weights.unmoved():
            self.clear()
        found = self._captured.get(key)
        if found is None:
            self._recent.append(key)
            if self._recent.count(key) < TIMES:
                return None
            found = self._capture(model, forward, Padding(size, data.pos), data, graph)
            if found is None:
                return None
            self._captured[key] = found
            if len(self._captured) > MAX_GRAPHS:
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        return found(data, graph)

    def _capture(
        self, model: nn.Module, forward: Forward, padding: Padding, data: Any, graph: Graph
    ) -> CapturedForward | None:
        try:
            if self._weights is None:
                self._weights = Weights(model)
            return self._record(forward, padding, data, graph)
        except RuntimeError as error:
            logging.warning(
                f"a prediction could not be captured as a CUDA graph ({reason(error)}); this model "
                "goes on without. model.cuda_graphs=never avoids the attempt"
            )
            self.mode = "never"
        # Outside the handler, whose traceback would keep the failed pass's memory.
        self.clear()
        return None

    def _record(
        self, forward: Forward, padding: Padding, data: Any, graph: Graph
    ) -> CapturedForward:
        device = data.pos.device
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
            self._pool = torch.cuda.graph_pool_handle()
        with capturing(device, self._pool):
            return CapturedForward(forward, padding, data, graph, self._stream, self._pool)
