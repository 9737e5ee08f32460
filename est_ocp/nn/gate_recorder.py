"""Collect the experts' probabilities of a network during a forward pass."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import nn

from est_ocp.nn.expert_gate import ExpertGate, ExpertGateMLP


class GateRecorder:
    """Context manager that records the softmax of every expert gate inside a module.

    With a top-K gate these are the probabilities before the choice of K, which the balance loss
    needs.

    Hooks live only inside the ``with`` block, so nothing is kept on the module itself.

    Parameters
    ----------
    module : Module
        Network whose gates are recorded.

    Attributes
    ----------
    records : dict of str to (Module, Tensor [N, E])
        By the gate's name: the gate, and its probabilities in the last forward pass with their
        autograd history.

    Examples
    --------
    >>> with GateRecorder(network) as gates:
    ...     y = network(x)
    >>> usage = {name: p.mean(0) for name, (gate, p) in gates.records.items()}
    """

    def __init__(self, module: nn.Module) -> None:
        self._gates = [
            (name, gate)
            for name, gate in module.named_modules()
            if isinstance(gate, ExpertGate | ExpertGateMLP)
        ]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.records: dict[str, tuple[nn.Module, torch.Tensor]] = {}

    def __enter__(self) -> GateRecorder:
        for name, gate in self._gates:

            def record(_module, _inputs, output, name=name, gate=gate):
                self.records[name] = (gate, output)

            self._handles.append(gate.softmax.register_forward_hook(record))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
