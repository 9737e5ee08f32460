"""Use of experts: what is logged, and that looking on does not slow compiled layers down."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch._dynamo.utils import counters

from est_ocp.models import layer_call
from est_ocp.nn import ExpertGate
from est_ocp.training import ExpertUsageLog, metrics_file
from tests.models import systems
from tests.models.every_backbone import BACKBONES


class Layer(torch.nn.Module):
    """The smallest layer with a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = ExpertGate(4, 3, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gate(x) @ x.new_ones(3, 4)


def watched(backbone: torch.nn.Module, tmp_path) -> tuple[SimpleNamespace, ExpertUsageLog]:
    """A backbone in training as the callback sees it, and the callback."""
    model = torch.nn.Module()
    model.backbone = backbone.train()
    progress = SimpleNamespace(num_steps_completed=2)
    unit = SimpleNamespace(model=model, logger=None, train_progress=progress)
    job = OmegaConf.create({"metadata": {"log_dir": str(tmp_path / "logs")}})
    log = ExpertUsageLog(job, every=2)
    log.on_train_start(None, unit)
    return unit, log


def test_usage_is_the_mean_over_all_atoms_since_the_last_row(tmp_path):
    unit, log = watched(BACKBONES["est_gotennet"](), tmp_path)
    gates, seen = dict(log.gates), {name: [] for name in log.gates}
    for name, gate in gates.items():
        gate.register_forward_hook(lambda _m, _i, out, name=name: seen[name].append(out.detach()))
    for size in (1, 2):
        unit.model.backbone(systems.collate([systems.water()] * size))
    log.on_train_step_end(None, unit)
    log.on_train_end(None, unit)
    (row,) = metrics_file.read(tmp_path / metrics_file.FILE_NAME)
    assert set(row["usage"]) == set(gates)
    for name, usage in row["usage"].items():
        expected = torch.cat(seen[name]).mean(0).tolist()
        assert usage == pytest.approx(expected, abs=1e-6)
    assert not any(hasattr(gate, "usage_sums") for gate in gates.values())


def test_compiled_layers_share_one_graph_while_they_are_watched(tmp_path):
    """Their hooks are not compiled layer by layer, nor anew after a row is written."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(Layer() for _ in range(4))
    unit, log = watched(layers, tmp_path)
    torch._dynamo.reset()
    compiled = torch.compile(layer_call._call, dynamic=True, fullgraph=True, backend="eager")
    before = counters["stats"]["unique_graphs"]
    for size in (20, 30, 40):
        for layer in layers:
            compiled(layer, torch.randn(size, 4))
        log.on_train_step_end(None, unit)
    assert counters["stats"]["unique_graphs"] - before == 1
    rows = metrics_file.read(tmp_path / metrics_file.FILE_NAME)
    assert len(rows) == 3
    for row in rows:
        # Every layer adds up its own, also those that run the graph of another.
        assert len({tuple(usage) for usage in row["usage"].values()}) == len(layers)
        assert all(sum(usage) == pytest.approx(1.0, abs=1e-5) for usage in row["usage"].values())
