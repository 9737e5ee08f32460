"""Steps of training that are replayed as CUDA graphs: when, of what sizes, and when dropped."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from est_ocp.errors import ConfigError
from est_ocp.models.capture_context import capturing, precision, uncached_autocast
from est_ocp.models.captured_step import CapturedStep, Forward, Leaves, Pending
from est_ocp.models.cuda_graph import Weights, check_mode, reason
from est_ocp.models.graph import Graph
from est_ocp.models.padding import PaddedSize, Padding
from est_ocp.nn import ExpertGate, ExpertGateMLP

#: Sizes that are kept, the last ones used: inputs and outputs; activations they share.
MAX_STEPS = 24

#: A kept size is used for a batch that it exceeds by at most this share.
MAX_EXCESS = 0.12

#: Beyond the first :data:`MAX_STEPS`, one capture, of about a second, for so many replays.
REPLAYS_A_CAPTURE = 100

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Trained(Weights):
    """Where tensors of a model lie, which of them are trained, and what hooks there are.

    Parameters
    ----------
    model : Module
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._hooks = [
            hooks
            for module in model.modules()
            for name in _HOOKS
            if (hooks := getattr(module, name)) is not getattr(model, name)
        ]
        self._state = self._now()

    def _now(self) -> tuple[Any, ...]:
        trained = tuple(tensor.requires_grad for _, _, tensor, _ in self._places)
        return trained, tuple(tuple(hooks) for hooks in self._hooks)

    def unmoved(self) -> bool:
        """Whether nothing has changed."""
        return super().unmoved() and self._state == self._now()


class CapturedSteps:
    """CUDA graphs of the training steps of one model, for a few padded sizes.

    A batch takes the smallest size kept that holds it without much waste; otherwise its own is
    captured, at first sight, as long as sizes turn out to be used again. All sizes share the
    memory of the activations, so only one step can be between its forward and its backward pass:
    the model runs plainly meanwhile. Gradients reach the parameters through autograd, as from the
    model itself. Copies of the object, with copies of the model, start empty.

    Parameters
    ----------
    mode : {"never", "inference", "training", "always"}
        ``training`` and ``always`` are those that count here.

    Attributes
    ----------
    captures, replays : int
        How often steps were captured and replayed so far.

    Raises
    ------
    ConfigError
        If the mode is unknown.
    """

    def __init__(self, mode: str = "inference") -> None:
        check_mode(mode)
        self.mode = mode
        self.captures = self.replays = 0
        self.clear()

    def clear(self) -> None:
        """Drop all graphs and, once their last backward pass is done, their memory."""
        self._captured: OrderedDict[tuple[Hashable, ...], CapturedStep] = OrderedDict()
        self._trained: Trained | None = None
        self._leaves: Leaves | None = None
        self._pending: weakref.ref[Pending] | None = None
        self._stream = self._pool = None

    def __deepcopy__(self, memo: dict[int, Any]) -> CapturedSteps:
        return type(self)(self.mode)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.mode,)

    def __len__(self) -> int:
        return len(self._captured)

    def wanted(self, data: Any) -> bool:
        """Whether a batch is one of a training that graphs are made for.

        Not where something looks into the pass: anomaly detection, hooks on saved tensors, a
        mode that sees each operation; nor with gradients of the positions.
        """
        return (
            self.mode in ("training", "always")
            and data.pos.is_cuda
            and not data.pos.requires_grad
            and torch.is_grad_enabled()
            and not torch.is_anomaly_enabled()
            and not is_in_torch_dispatch_mode()
            and torch._C._autograd._top_saved_tensors_default_hooks(False) is None
            and not torch.cuda.is_current_stream_capturing()
        )

    def plainly(self) -> torch.autocast:
        """Context of a pass without a graph: compiled layers are those of captured passes."""
        return uncached_autocast()

    def __call__(
        self, model: nn.Module, forward: Forward, data: Any, graph: Graph, *state: Hashable
    ) -> dict[str, Any] | None:
        """Return ``forward`` of a batch by a graph, or None where it is to be run plainly.

        Parameters
        ----------
        model : Module
            Whose weights `forward` uses; hooks before its ``backbone`` are shown each batch.
        forward : callable
            Padded batch to nested dictionary of tensors; the same at every call.
        data : AtomicData
        graph : Graph
            Of `data`.
        *state
            What else decides on the kernels.
        """
        if self._trained is not None and not self._trained.unmoved():
            self.clear()
        if self._is_pending():
            return None
        batch = (data.pos.shape[0], graph.vec.shape[0], data.natoms.numel())
        kind = (data.pos.dtype, data.pos.device, *precision(), *state)
        key = self._kept(batch, kind)
        if key is None:
            if self.captures >= MAX_STEPS + self.replays // REPLAYS_A_CAPTURE:
                return None
            key = (PaddedSize.coarse(*batch), *kind)
            step = self._capture(model, forward, Padding(key[0], data.pos), data, graph)
            if step is None:
                return None
            self._captured[key] = step
            if len(self._captured) > MAX_STEPS:
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        _show(model.backbone, data)
        outputs, pending = self._captured[key](data, graph)
        self._pending = weakref.ref(pending)
        self.replays += 1
        return outputs

    def _is_pending(self) -> bool:
        """Whether the last step may still want its activations."""
        pending = None if self._pending is None else self._pending()
        return pending is not None and not pending.done

    def _kept(
        self, batch: tuple[int, int, int], kind: tuple[Hashable, ...]
    ) -> tuple[Hashable, ...] | None:
        """Key of the smallest size that holds a batch well enough."""
        fitting = [
            key
            for key in self._captured
            if key[1:] == kind and key[0].holds(*batch) and key[0].close_to(*batch, MAX_EXCESS)
        ]
        return min(fitting, key=lambda key: (key[0].edges, key[0].atoms), default=None)

    def _capture(
        self, model: nn.Module, forward: Forward, padding: Padding, data: Any, graph: Graph
    ) -> CapturedStep | None:
        try:
            _refuse_hooks(model)
            if self._trained is None:
                self._trained, self._leaves = Trained(model), Leaves(model)
            step = CapturedStep(self._leaves, padding, data, graph)
            with _batch_unseen(model.backbone), _real_rows(model, step.rows):
                self._record(step, forward)
            self.captures += 1
            return step
        except RuntimeError as error:
            logging.warning(
                f"a training step could not be captured as a CUDA graph ({reason(error)}); this "
                "model goes on without. model.cuda_graphs=inference avoids the attempt"
            )
            self.mode = "never"
        # Outside the handler, whose traceback would keep the failed pass's memory.
        self.clear()
        return None

    def _record(self, step: CapturedStep, forward: Forward) -> None:
        device = step.rows.device
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
            self._pool = torch.cuda.graph_pool_handle()
        with capturing(device, self._pool):
            step.record(forward, self._stream, self._pool)


def _refuse_hooks(model: nn.Module) -> None:
    """Raise RuntimeError if a module has a hook, which a replay would not call.

    Hooks of the model itself are called outside, those before its backbone by :func:`_show`, and
    what a hook with an attribute ``capturable`` does with tensors is part of the graph.
    """
    for name, module in model.named_modules():
        for kind in _HOOKS:
            if module is model or (module is model.backbone and kind == "_forward_pre_hooks"):
                continue
            if not all(getattr(h, "capturable", False) for h in getattr(module, kind).values()):
                raise RuntimeError(f"{name} has a hook")


def _show(backbone: nn.Module, data: Any) -> None:
    """Call the hooks before a backbone."""
    for hook in backbone._forward_pre_hooks.values():
        if hook(backbone, (data,)) is not None:
            raise ConfigError(
                "a hook replaces the batches of a backbone whose steps are replayed as CUDA "
                "graphs; set model.cuda_graphs to inference"
            )


@contextmanager
def _batch_unseen(backbone: nn.Module) -> Iterator[None]:
    """Without the hooks before a backbone: a padded batch is none of theirs."""
    hooks, backbone._forward_pre_hooks = backbone._forward_pre_hooks, OrderedDict()
    try:
        yield
    finally:
        backbone._forward_pre_hooks = hooks


@contextmanager
def _real_rows(model: nn.Module, rows: torch.Tensor) -> Iterator[None]:
    """Tell the gates how many of their rows are no filling: ``rows`` holds atoms and edges."""
    gates = [m for m in model.modules() if isinstance(m, ExpertGate | ExpertGateMLP)]
    for gate in gates:
        gate.real_rows = rows[int(gate.per_edge)]
    try:
        yield
    finally:
        for gate in gates:
            del gate.real_rows
