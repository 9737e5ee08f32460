"""Compiled layers: when, and that they compute the same."""

from __future__ import annotations

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.models import layer_call
from est_ocp.models.layer_call import LayerCall
from tests.models.small import model, outputs
from tests.models.systems import collate, slab
from tests.tolerances import TOL


def test_wrong_keys_are_refused():
    with pytest.raises(ConfigError, match="compile_layers must be one of never, training, always"):
        LayerCall("sometimes")
    with pytest.raises(ConfigError, match=r"memory_budget must lie in 0\.\.1"):
        LayerCall("always", 1.5)


def test_when_it_compiles():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert not LayerCall("always")._wanted(cpu)
    assert not LayerCall("never")._wanted(gpu)
    assert LayerCall("training")._wanted(gpu)
    with torch.no_grad():
        assert not LayerCall("training")._wanted(gpu)
        assert LayerCall("always")._wanted(gpu)


def test_layers_compile_without_breaks_and_give_the_same(monkeypatch):
    """All layers of a kind share one graph, whatever the sizes, and nothing leaves the graph."""
    kinds = []

    def backend(graph, inputs):
        kinds.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(layer_call._call, dynamic=True, fullgraph=True, backend=backend)
    monkeypatch.setattr(layer_call, "_compiled", compiled)
    made = model(num_layers=4)
    systems = [collate([slab()]), collate([slab(), slab()])]
    plain = [outputs(made, system) for system in systems]
    monkeypatch.setattr(LayerCall, "_wanted", lambda self, device: True)
    for system, expected in zip(systems, plain, strict=True):
        for mine, theirs in zip(outputs(made, system), expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=TOL[theirs.dtype], rtol=0)
    # First features, a layer with and without a gradient of its input, the force head.
    assert len(kinds) <= 4
