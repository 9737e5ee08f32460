"""When predictions are captured, kept and dropped; the replay itself where there is a GPU."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.models import ESTHydraModel
from est_ocp.models.cuda_graph import AMONG, MAX_GRAPHS, TIMES, CapturedForwards, Weights
from est_ocp.models.graph import EDGE_VEC
from tests.models import systems
from tests.models.every_backbone import BACKBONES
from tests.models.small import model, outputs

TOLERANCE = 1e-12

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Recorded:
    """What a CUDA graph does, without one: the same pass on the same padded tensors."""

    def __init__(self, forward, padding, data, graph):
        self.forward, self.padding, self.inputs = forward, padding, padding(data, graph)
        self.calls = 0

    def __call__(self, data, graph):
        self.calls += 1
        self.padding(data, graph, out=self.inputs)
        return self.padding.unpad(self.forward(self.inputs), len(data.pos), len(data.natoms))


class OnCpu(CapturedForwards):
    """Graphs without a GPU."""

    def wanted(self, data):
        return self.mode in ("inference", "always") and len(data.pos) <= self.max_atoms

    def _record(self, forward, padding, data, graph):
        return Recorded(forward, padding, data, graph)


class Failing(OnCpu):
    """A forward pass that cannot be captured."""

    def _record(self, forward, padding, data, graph):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


@pytest.fixture
def small() -> ESTHydraModel:
    made = model(num_layers=1)
    made.captured = OnCpu()
    return made


def slab(seed: int = 0):
    return systems.collate([systems.slab(seed=seed, rattle=0.02)])


def plain(made: ESTHydraModel, data) -> tuple[torch.Tensor, torch.Tensor]:
    made.captured.mode, before = "never", made.captured.mode
    out = outputs(made, data)
    made.captured.mode = before
    return out


def test_a_trajectory_is_captured_and_its_results_are_the_plain_ones(small):
    for seed in range(6):
        data = slab(seed)
        for found, expected in zip(outputs(small, data), plain(small, data), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
        assert EDGE_VEC not in data
        assert len(small.captured) == (seed + 1 >= TIMES)
    (recorded,) = small.captured._captured.values()
    assert recorded.calls == 6 - TIMES + 1


def test_results_survive_later_calls(small):
    kept = [outputs(small, slab(seed)) for seed in range(TIMES + 2)]
    for seed, found in enumerate(kept):
        for ours, expected in zip(found, plain(small, slab(seed)), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCE)


def test_new_values_of_weights_count_at_once(small):
    for seed in range(TIMES):
        outputs(small, slab(seed))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(1.1)
    energy, _ = outputs(small, slab())
    assert len(small.captured) == 1
    torch.testing.assert_close(energy, plain(small, slab())[0], rtol=0, atol=TOLERANCE)


def test_ever_new_sizes_are_never_captured(small):
    sizes = [[systems.water()] * count for count in range(1, AMONG + 1)]
    for _ in range(TIMES):
        for batch in sizes:
            outputs(small, systems.collate(batch))
    assert len(small.captured) == 0


def test_the_last_used_are_kept(small):
    for count in range(1, MAX_GRAPHS + 2):
        for _ in range(TIMES):
            outputs(small, systems.collate([systems.single_atom()] * count))
        outputs(small, systems.collate([systems.single_atom()]))
    kept = [key[0].graphs - 1 for key in small.captured._captured]
    assert len(kept) == MAX_GRAPHS
    assert kept[-1] == 1
    assert 2 not in kept


@pytest.mark.parametrize(
    "move",
    [
        lambda made: made.to(torch.float32).to(torch.float64),
        lambda made: made.load_state_dict(copy.deepcopy(made.state_dict()), assign=True),
        lambda made: made.backbone.atom_embedding.register_parameter(
            "weight", torch.nn.Parameter(torch.ones(90, 8).double())
        ),
    ],
    ids=["moved", "assigned", "replaced"],
)
def test_weights_that_move_or_are_replaced_are_noticed(small, move):
    weights = Weights(small)
    with torch.no_grad():
        next(small.parameters()).add_(1.0)
    assert weights.unmoved()
    move(small)
    assert not weights.unmoved()


def test_graphs_are_dropped_when_weights_move(small):
    for seed in range(TIMES):
        outputs(small, slab(seed))
    assert len(small.captured) == 1
    small.load_state_dict(copy.deepcopy(small.state_dict()), assign=True)
    outputs(small, slab())
    assert len(small.captured) == 0


def test_training_drops_them(small):
    for seed in range(TIMES):
        outputs(small, slab(seed))
    small.train()
    assert len(small.captured) == 0
    # Its steps are another matter.
    outputs(small, slab())
    assert len(small.captured) == 0


def test_the_loader_s_graph_is_used_and_left(small):
    data = slab()
    graph = small.backbone.radius_graph(data)
    data["graph_edge_index"], data["graph_edge_vec"] = graph.edge_index, graph.vec
    for _ in range(TIMES + 1):
        outputs(small, data)
    assert len(small.captured) == 1
    assert EDGE_VEC in data


def test_what_cannot_be_captured_runs_as_it_is(small, caplog):
    small.captured = Failing()
    for seed in range(TIMES + 1):
        energy, _ = outputs(small, slab(seed))
        torch.testing.assert_close(energy, plain(small, slab(seed))[0], rtol=0, atol=TOLERANCE)
    assert small.captured.mode == "never"
    (record,) = caplog.records
    assert "operation not permitted when stream is capturing" in record.message
    assert "\n" not in record.message


def test_which_models_can_be_captured():
    balance = {
        "energy": {"module": "est_ocp.models.EnergyHead"},
        "expert_balance": {"module": "est_ocp.models.BalanceHead"},
    }
    assert model(num_layers=1).capturable
    assert not model(num_layers=1, conservative=True).capturable
    assert not model(num_layers=1, heads=balance).capturable
    assert not BACKBONES["est_escn_md"]().capturable


def test_not_with_gradients_not_for_large_batches_and_not_on_cpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    on_gpu = SimpleNamespace(pos=SimpleNamespace(is_cuda=True, shape=(3, 3)))
    captured = CapturedForwards(max_atoms=3)
    assert not captured.wanted(on_gpu)
    with torch.no_grad():
        assert captured.wanted(on_gpu)
        assert CapturedForwards("always").wanted(on_gpu)
        assert not CapturedForwards("training").wanted(on_gpu)
        assert not CapturedForwards(max_atoms=2).wanted(on_gpu)
        assert not CapturedForwards("never").wanted(on_gpu)
        assert not captured.wanted(systems.collate([systems.water()]))


def test_copies_start_empty(small):
    for seed in range(TIMES):
        outputs(small, slab(seed))
    twin = copy.deepcopy(small)
    assert len(small.captured) == 1
    assert len(twin.captured) == 0
    again = pickle.loads(pickle.dumps(CapturedForwards("never", 7)))
    assert (again.mode, again.max_atoms) == ("never", 7)


@pytest.mark.parametrize(
    "options", [{"cuda_graphs": "sometimes"}, {"cuda_graph_atoms": -1}], ids=["mode", "atoms"]
)
def test_settings_without_meaning_are_refused(options):
    with pytest.raises(ConfigError, match=r"model\.cuda_graph"):
        ESTHydraModel(
            backbone={"model": "est_ocp.models.SchNetBaseline"},
            heads={"energy": {"module": "est_ocp.models.EnergyHead"}},
            **options,
        )


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replays_are_the_plain_results_on_a_gpu(precision):
    made = model(torch.float32, num_layers=1).cuda()
    made.captured = CapturedForwards()
    autocast = torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bf16")
    batches = [[systems.slab(seed=seed)] for seed in range(3)] + [[systems.water()] * 2]
    with torch.no_grad():
        for turn in range(2 * TIMES):
            for batch in batches:
                data = systems.collate(batch, torch.float32).to("cuda")
                exact = plain(made, data)
                with autocast:
                    found, rounded = outputs(made, data), plain(made, data)
                for ours, theirs, reference in zip(found, rounded, exact, strict=True):
                    # Padding changes the products' sizes, and with them how they are rounded.
                    error = float((theirs - reference).abs().max())
                    scale = max(float(reference.abs().max()), 1e-3)
                    atol = 3 * error + 1e-4 * scale
                    torch.testing.assert_close(ours, reference, rtol=0, atol=atol)
            if turn == TIMES:
                for parameter in made.parameters():
                    parameter.mul_(1.05)
    assert len(made.captured) >= 2
    assert made.captured.mode == "inference"
