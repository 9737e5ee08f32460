"""How much each expert is used."""

from __future__ import annotations

import math
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import nn
from torchtnt.framework.callback import Callback

from est_ocp.nn import ExpertGate, ExpertGateMLP
from est_ocp.training import metrics_file
from est_ocp.training.step_watcher import inner_model

#: Where a gate keeps the sums of its probabilities and the number of rows, float64 [E + 1].
_SUMS = "usage_sums"


def _add(gate: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
    """Forward hook: add up probabilities.

    The same function for every layer, and nothing but a tensor changes: compiled layers of one
    kind go on sharing one graph.
    """
    if gate.training:
        probabilities = output.detach().double()
        count = probabilities.new_full((1,), len(probabilities))
        if gate.real_rows is not None:
            numbers = torch.arange(len(probabilities), device=probabilities.device)
            probabilities = probabilities * (numbers < gate.real_rows)[:, None]
            count = gate.real_rows.to(probabilities.dtype).reshape(1)
        getattr(gate, _SUMS).add_(torch.cat([probabilities.sum(0), count]))


#: A captured training step counts too.
_add.capturable = True


class ExpertUsageLog(Callback):
    """Mean gate probability of each expert and its entropy, layer by layer.

    Rows of kind ``experts`` go to ``metrics.jsonl``; wandb gets them too where it is on. An
    entropy (in units of that of equal use) near 1 means that all experts are used alike, near 0
    that one does all the work.

    Parameters
    ----------
    job_config : DictConfig
        The job, for the place of the run.
    every : int
        Steps between rows. Usage is averaged over the atoms of all steps in between.
    """

    def __init__(self, job_config: Any, every: int = 50) -> None:
        self.path = metrics_file.metrics_path(job_config)
        self.every = every
        self.gates: dict[str, nn.Module] = {}
        self.handles: list[Any] = []

    def on_train_start(self, state: Any, unit: Any) -> None:
        """Hook the gates."""
        for name, module in inner_model(unit).named_modules():
            if isinstance(module, ExpertGate | ExpertGateMLP):
                zeros = torch.zeros(module.num_experts + 1, dtype=torch.float64)
                # No buffer: those of the averaged model would no longer match.
                setattr(module, _SUMS, zeros.to(next(module.parameters()).device))
                self.gates[name.removeprefix("backbone.")] = module
                self.handles.append(module.register_forward_hook(_add))

    def on_train_step_end(self, state: Any, unit: Any) -> None:
        """Write a row where one is due."""
        step = unit.train_progress.num_steps_completed
        if step % self.every or not self.gates:
            return
        device = distutils.get_device_for_local_rank()
        usage, entropy = {}, {}
        for layer, gate in self.gates.items():
            total = getattr(gate, _SUMS).clone()
            getattr(gate, _SUMS).zero_()
            if distutils.get_world_size() > 1:
                total = distutils.all_reduce(total, average=False, device=device)
            mean = (total[:-1] / total[-1]).tolist()
            usage[layer] = [round(p, 6) for p in mean]
            if len(mean) > 1:
                raw = -sum(p * math.log(p) for p in mean if p > 0)
                entropy[layer] = round(raw / math.log(len(mean)), 6)
        if not distutils.is_master():
            return
        metrics_file.append(
            self.path, {"kind": "experts", "step": step, "usage": usage, "entropy": entropy}
        )
        if unit.logger is not None:
            unit.logger.log(
                {f"experts/entropy/{k}": v for k, v in entropy.items()}, step=step - 1, commit=False
            )

    def on_train_end(self, state: Any, unit: Any) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        for gate in self.gates.values():
            delattr(gate, _SUMS)
        self.gates.clear()
