"""Compiled layers: when, and that they compute the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from est_ocp.errors import ConfigError
from est_ocp.models import layer_call
from est_ocp.models.layer_call import LayerCall
from tests.models import small, small_equiformer
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


def compile_all_layers(monkeypatch) -> Callable[[], int]:
    """Compile on the CPU too, in one graph a call; returns the number of kinds compiled so far."""
    torch._dynamo.reset()
    compiled = torch.compile(layer_call._call, dynamic=True, fullgraph=True, backend="eager")
    monkeypatch.setattr(layer_call, "_compiled", compiled)
    monkeypatch.setattr(LayerCall, "_wanted", lambda self, device: self.allowed)
    before = counters["stats"]["unique_graphs"]
    return lambda: counters["stats"]["unique_graphs"] - before


def gradients(made: torch.nn.Module, data, parts: tuple[str, str]) -> list[torch.Tensor]:
    """Gradients of all parameters for a sum of squares of both outputs."""
    out = made(data)
    sum(out[part][part].square().sum() for part in parts).backward()
    found = [p.grad.clone() for p in made.parameters()]
    made.zero_grad()
    return found


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (partial(small.model, alpha_drop=0.0, drop_path=0.0), ("energy", "forces")),
        (partial(small_equiformer.model, vectors=True), ("energy", "position_delta")),
        (
            partial(small_equiformer.model, vectors=True, baseline=True),
            ("energy", "position_delta"),
        ),
        pytest.param(
            partial(small.model, alpha_drop=0.0, drop_path=0.0, graph={"envelope": True}),
            ("energy", "forces"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            partial(small_equiformer.model, vectors=True, graph={"envelope": True}),
            ("energy", "position_delta"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["v2-est", "est", "feed-forward", "v2-est-envelope", "est-envelope"],
)
def test_layers_compile_without_breaks_and_give_the_same(monkeypatch, make, parts):
    """All layers of a kind share one graph, whatever the sizes, and nothing leaves the graph."""
    made = make(num_layers=3).train()
    systems = [collate([slab(seed=i) for i in range(size)]) for size in (2, 3)]
    plain = [gradients(made, system, parts) for system in systems]
    kinds = compile_all_layers(monkeypatch)
    for system, expected in zip(systems, plain, strict=True):
        for mine, theirs in zip(gradients(made, system, parts), expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=TOL[theirs.dtype], rtol=1e-9)
    # First features, layers, a last layer with other irreps, the head of vectors.
    assert 3 <= kinds() <= 4


def test_equiformer_takes_the_keys():
    backbone = small_equiformer.model(compile_layers="training", memory_budget=0.5).backbone
    assert (backbone.call_layer.mode, backbone.call_layer.memory_budget) == ("training", 0.5)
    with pytest.raises(ConfigError, match="compile_layers must be one of"):
        small_equiformer.model(compile_layers="sometimes")


def test_conservative_models_are_not_compiled(monkeypatch):
    """Their training differentiates twice, which compiled layers cannot."""
    made = small.model(conservative=True, compile_layers="training").train()
    assert not made.backbone.call_layer._wanted(torch.device("cuda"))
    kinds = compile_all_layers(monkeypatch)
    out = made(collate([slab()]))
    (out["energy"]["energy"].sum() + out["forces"]["forces"].square().sum()).backward()
    assert kinds() == 0


def test_many_kinds_of_layers_are_all_compiled(monkeypatch):
    """Beyond its usual limit of 8, PyTorch would run them as they are, with a warning at most."""
    kinds = compile_all_layers(monkeypatch)
    compiled = torch.compile(layer_call._call, dynamic=True, backend="eager")
    monkeypatch.setattr(layer_call, "_compiled", compiled)
    x = torch.rand(3, 2)
    functions = (
        torch.sin, torch.cos, torch.tan, torch.exp, torch.sqrt, torch.abs, torch.neg,
        torch.tanh, torch.sinh, torch.cosh, torch.sigmoid, torch.relu,
    )  # fmt: skip
    for function in functions:
        assert torch.equal(LayerCall("always")(function, x), function(x))
    assert kinds() == len(functions)
