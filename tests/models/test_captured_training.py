"""Steps of training as CUDA graphs: their gradients, and when graphs are made, used and dropped."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from est_ocp.errors import ConfigError
from est_ocp.models import EnergyHead, ESTHydraModel, captured_training, layer_call
from est_ocp.models.captured_training import MAX_EXCESS, MAX_STEPS, CapturedSteps
from est_ocp.models.graph import EDGE_VEC
from est_ocp.models.padding import PaddedSize
from est_ocp.nn import ExpertGate
from est_ocp.nn.drop import EquivariantDropout, GraphDropPath
from est_ocp.training import ExpertUsageLog, metrics_file
from est_ocp.training.step_watcher import StepWatcher
from tests.models import systems
from tests.models.captured_on_cpu import Failing, OnCpu
from tests.models.every_backbone import BACKBONES
from tests.models.no_host_sync import NoHostSync
from tests.models.small import model

#: Of gradients in float64, relative to their norm.
TOLERANCE = 1e-12

#: On a GPU, relative to the norm: sums of other lengths, in bf16 of rounded numbers.
GPU_TOLERANCE = {"fp32": 2e-5, "bf16": 3e-2}

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

#: Batches that the first one's size holds, one that it does not, and fewer structures.
BATCHES = ("slabs", "others", "larger", "fewer")


def batch(name: str, dtype: torch.dtype = torch.float64):
    small, large = (2, 2, 3), (3, 2, 3)
    made = {
        "slabs": [systems.slab(size=small, seed=seed) for seed in range(4, 7)],
        "others": [systems.slab(size=small, seed=seed) for seed in range(3)],
        "larger": [systems.slab(size=large, seed=seed) for seed in range(4)],
        "fewer": [systems.slab(size=large), systems.slab(size=large, seed=1)],
    }[name]
    return systems.collate(made, dtype)


def small_model(**settings) -> ESTHydraModel:
    """A model in training without dropout."""
    settings = {"num_layers": 1, "alpha_drop": 0.0, "drop_path": 0.0} | settings
    return model(**settings).train()


@pytest.fixture
def small() -> ESTHydraModel:
    made = small_model()
    made.captured_steps = OnCpu(made)
    return made


@pytest.fixture(scope="module")
def plain() -> ESTHydraModel:
    return small_model()


def loss_of(made, data) -> torch.Tensor:
    """A loss with other weights for each atom and structure."""
    out = made(data)
    energy, forces = out["energy"]["energy"], out["forces"]["forces"]
    assert energy.shape == data.natoms.shape
    assert forces.shape == data.pos.shape
    by_system = torch.arange(1.0, len(energy) + 1, dtype=energy.dtype, device=energy.device)
    by_atom = torch.cos(torch.arange(3 * len(forces), device=energy.device)).reshape(-1, 3)
    return (by_system * energy.square()).sum() + (by_atom * forces).sum() + forces.norm()


def gradients(made) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])


def gradients_of(made, *names: str, dtype: torch.dtype = torch.float64, device: str = "cpu"):
    """Sum of the gradients of batches, one backward pass after each forward pass."""
    made.zero_grad(set_to_none=True)
    for name in names:
        loss_of(made, batch(name, dtype).to(device)).backward()
    return gradients(made)


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert torch.isfinite(found).all()
    assert (found - expected).norm() <= tolerance * expected.norm()


def test_gradients_are_the_plain_ones_and_sizes_are_few(small, plain):
    for _ in range(2):
        for name in BATCHES:
            assert_close(gradients_of(small, name), gradients_of(plain, name))
    steps = small.captured_steps
    assert (len(steps), steps.captures, steps.replays) == (3, 3, 2 * len(BATCHES))
    assert [p.grad is None for p in small.parameters()] == [
        p.grad is None for p in plain.parameters()
    ]


def test_nothing_is_captured_by_default():
    made = small_model()
    gradients_of(made, "slabs")
    assert made.captured_steps.mode == "inference"
    assert len(made.captured_steps) == 0


@pytest.mark.parametrize("to_none", [True, False])
def test_a_training_is_the_plain_one(small, to_none):
    other = small_model()
    losses = []
    for made in (small, other):
        optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
        for name in BATCHES * 2:
            # Two batches a step, whose gradients add up, then clipped.
            optimizer.zero_grad(set_to_none=to_none)
            for part in (name, "slabs"):
                loss = loss_of(made, batch(part))
                loss.backward()
                losses.append(loss.item())
            torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
            optimizer.step()
    assert losses[: len(losses) // 2] == pytest.approx(losses[len(losses) // 2 :], rel=1e-9)
    assert small.captured_steps.replays == 4 * len(BATCHES)


def test_gradients_are_not_the_graphs_own_memory(small, plain):
    gradients_of(small, "slabs")
    kept = [p.grad for p in small.parameters() if p.grad is not None]
    before = [g.clone() for g in kept]
    own = {g.data_ptr() for g in small.captured_steps._leaves.gradients}
    assert own.isdisjoint(g.data_ptr() for g in kept)
    gradients_of(small, "others")
    assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))
    assert_close(gradients_of(small, "slabs", "others", "slabs"),
                 gradients_of(plain, "slabs", "others", "slabs"))  # fmt: skip


@pytest.mark.parametrize("second", ["slabs", "larger"])
def test_a_forward_pass_before_the_last_one_s_backward_runs_plainly(small, plain, second):
    gradients_of(small, "slabs")
    for made in (small, plain):
        made.zero_grad(set_to_none=True)
        first, other = loss_of(made, batch("others")), loss_of(made, batch(second))
        (first * other).backward()
    assert_close(gradients(small), gradients(plain))
    assert small.captured_steps.replays == 2
    gradients_of(small, "slabs")
    assert small.captured_steps.replays == 3


def test_a_step_without_a_backward_pass_holds_nothing_up(small, plain):
    for _ in range(3):
        loss_of(small, batch("slabs"))
    assert_close(gradients_of(small, "others"), gradients_of(plain, "others"))
    assert small.captured_steps.replays == 4


def test_a_second_backward_pass_is_refused(small):
    loss = loss_of(small, batch("slabs"))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"model\.cuda_graphs to inference"):
        loss.backward()


def test_losses_of_some_outputs(small, plain):
    """Weights of the others get zeros, where a plain step leaves them without a gradient."""
    for made in (small, plain):
        # After other upstream gradients, which must not be taken again.
        made.zero_grad(set_to_none=True)
        loss_of(made, batch("slabs")).backward()
        made.zero_grad(set_to_none=False)
        made(batch("others"))["energy"]["energy"].sum().backward()
    assert_close(gradients(small), gradients(plain))


def test_parameters_keep_their_own_nodes_and_hooks(small, plain):
    seen = []
    parameter = next(small.parameters())
    parameter.register_hook(lambda gradient: seen.append(gradient.clone()))
    parameter.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    gradients_of(small, "slabs")
    # Neither warm-up nor capture were seen.
    assert len(seen) == 2
    gradients_of(plain, "slabs")
    for gradient in seen:
        assert_close(gradient, next(plain.parameters()).grad)
    assert not small.captured_steps._leaves.twins[0].grad


def test_frozen_parameters(small, plain):
    gradients_of(small, "slabs")
    small.backbone.requires_grad_(False)
    gradients_of(plain, "slabs")
    gradients_of(small, "slabs")
    assert small.captured_steps.captures == 2
    for name, parameter in small.named_parameters():
        assert (parameter.grad is None) == name.startswith("backbone."), name
    expected = [p.grad.flatten() for p in plain.output_heads.parameters()]
    assert_close(gradients(small), torch.cat(expected))


def test_data_parallel(small, plain, tmp_path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        parallel = DistributedDataParallel(small, gradient_as_bucket_view=True)
        for name in BATCHES * 2:
            assert_close(gradients_of(parallel, name), gradients_of(plain, name))
        parallel.zero_grad(set_to_none=True)
        with parallel.no_sync():
            loss_of(parallel, batch("others")).backward()
        loss_of(parallel, batch("slabs")).backward()
        assert_close(gradients(parallel), gradients_of(plain, "others", "slabs"))
    finally:
        distributed.destroy_process_group()
    assert small.captured_steps.replays == 2 * len(BATCHES) + 2


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.to(torch.float32).to(torch.float64),
        lambda made: made.load_state_dict(copy.deepcopy(made.state_dict()), assign=True),
        lambda made: made.backbone.norm.register_forward_hook(lambda *_: None),
    ],
    ids=["moved", "assigned", "hook"],
)
def test_graphs_are_dropped_when_the_model_changes(small, change):
    gradients_of(small, "slabs")
    before = small.captured_steps._captured.copy()
    small.load_state_dict(copy.deepcopy(small.state_dict()))
    gradients_of(small, "slabs")
    assert small.captured_steps._captured == before
    change(small)
    gradients_of(small, "slabs")
    assert small.captured_steps._captured != before


def test_graphs_stay_through_an_evaluation(small):
    gradients_of(small, "slabs")
    small.eval()
    with torch.no_grad():
        small(batch("slabs"))
    small.train()
    gradients_of(small, "slabs")
    assert (small.captured_steps.captures, small.captured_steps.replays) == (1, 2)


def test_what_cannot_be_captured_runs_plainly(small, plain, caplog):
    small.captured_steps = Failing(small)
    for name in BATCHES:
        assert_close(gradients_of(small, name), gradients_of(plain, name))
        assert EDGE_VEC not in batch(name)
    assert small.captured_steps.mode == "never"
    (record,) = caplog.records
    assert "called a synchronizing CUDA operation" in record.message
    assert "model.cuda_graphs=inference" in record.message
    assert "\n" not in record.message


def test_hooks_inside_the_model_are_not_passed_over(small, caplog):
    calls = []
    small.backbone.norm.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        gradients_of(small, "slabs")
    assert len(calls) == 3
    (record,) = caplog.records
    assert "backbone.norm has a hook" in record.message


def test_hooks_before_the_backbone_see_every_batch(small):
    watcher = StepWatcher()
    watcher.attach(SimpleNamespace(model=small, tasks=[]))
    for name in BATCHES * 2:
        data = batch(name)
        data.sid = [f"{name} {i}" for i in range(len(data.natoms))]
        loss_of(small, data).backward()
        assert (watcher.num_samples, watcher.num_atoms) == (len(data.natoms), len(data.pos))
        assert watcher.sids == data.sid
    assert small.captured_steps.replays == 2 * len(BATCHES)


def test_a_hook_that_replaces_batches_is_refused(small):
    small.backbone.register_forward_pre_hook(lambda _module, inputs: inputs)
    with pytest.raises(ConfigError, match=r"model\.cuda_graphs to inference"):
        loss_of(small, batch("slabs"))


def test_use_of_experts_is_that_of_the_atoms_and_edges(tmp_path):
    heads = {"energy": {"module": "est_ocp.models.EnergyHead"}}
    rows = []
    for captured in (True, False):
        torch.manual_seed(0)
        made = ESTHydraModel(
            backbone={"model": "est_ocp.models.ESTNetwork", "lmax": 2, "num_layers": 1,
                      "channels": 6, "num_distance_basis": 8, "edge_channels": 6,
                      "message": {"num_spherical_experts": 1, "num_steerable_experts": 2,
                                  "hidden_channels": 4, "spherical_expert_channels": 4,
                                  "steerable_expert_channels": 4, "radial_channels": [6]},
                      "update": {"num_spherical_experts": 2, "num_steerable_experts": 2,
                                 "spherical_expert_channels": 4, "steerable_expert_channels": 4}},
            heads=heads,
        ).double().train()  # fmt: skip
        made.captured_steps = OnCpu(made, "training" if captured else "never")
        folder = tmp_path / str(captured)
        folder.mkdir()
        job = OmegaConf.create({"metadata": {"log_dir": str(folder / "logs")}})
        progress = SimpleNamespace(num_steps_completed=1)
        unit = SimpleNamespace(model=made, logger=None, train_progress=progress)
        log = ExpertUsageLog(job, every=1)
        log.on_train_start(None, unit)
        assert {gate.per_edge for gate in log.gates.values()} == {False, True}
        for name in ("slabs", "others"):
            made(batch(name))["energy"]["energy"].sum().backward()
        log.on_train_step_end(None, unit)
        log.on_train_end(None, unit)
        (row,) = metrics_file.read(folder / metrics_file.FILE_NAME)
        rows.append(row["usage"])
        assert made.captured_steps.replays == 2 * captured
        assert all(gate.real_rows is None for gate in log.gates.values())
    assert rows[0].keys() == rows[1].keys()
    for name, usage in rows[0].items():
        assert usage == pytest.approx(rows[1][name], abs=2e-6)


CAPTURABLE = sorted(name for name, make in BACKBONES.items() if make().capturable)


@pytest.mark.parametrize("name", CAPTURABLE)
def test_every_parameter_is_reached(name):
    """Those of every backbone that can be captured are found where its modules look for them."""
    head = EnergyHead(BACKBONES[name]())
    found = []
    for mode in ("training", "never"):
        made = small_model(num_layers=1)
        made.backbone = BACKBONES[name]()
        made.output_heads = torch.nn.ModuleDict({"energy": copy.deepcopy(head)})
        made.double().train()
        for module in made.modules():
            if isinstance(module, GraphDropPath):
                module.drop_prob = 0.0
            elif isinstance(module, torch.nn.Dropout | EquivariantDropout):
                module.p = 0.0
        made.captured_steps = OnCpu(made, mode)
        made(batch("fewer"))["energy"]["energy"].square().sum().backward()
        assert made.captured_steps.replays == (mode == "training")
        found.append({n: p.grad for n, p in made.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    joined = [torch.cat([g.flatten() for g in gradients.values()]) for gradients in found]
    assert_close(*joined)


def test_compiled_gates_count_their_real_rows(tmp_path):
    """The hook that counts is compiled with the layer, with filling or without."""
    made = torch.nn.Module()
    made.backbone = torch.nn.ModuleList(ExpertGate(4, 3) for _ in range(2)).train()
    job = OmegaConf.create({"metadata": {"log_dir": str(tmp_path / "logs")}})
    log = ExpertUsageLog(job, every=1)
    log.on_train_start(None, SimpleNamespace(model=made))
    torch._dynamo.reset()
    compiled = torch.compile(layer_call._call, dynamic=True, fullgraph=True, backend="eager")
    rows = torch.tensor([5, 0])
    for gate in made.backbone:
        with captured_training._real_rows(made, rows):
            out = compiled(gate, torch.randn(9, 4))
        assert torch.allclose(gate.usage_sums[:-1], out[:5].double().sum(0))
        assert gate.usage_sums[-1] == 5
        compiled(gate, torch.randn(9, 4))
        assert gate.usage_sums[-1] == 14


def test_which_steps_can_be_captured():
    assert small_model().capturable
    assert not small_model(activation_checkpointing=True).capturable
    assert small_model(activation_checkpointing=True).eval().capturable
    assert not small_model(conservative=True).capturable


def test_which_batches_are_wanted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    on_gpu = SimpleNamespace(pos=SimpleNamespace(is_cuda=True, requires_grad=False))
    for mode, expected in (("training", True), ("always", True), ("inference", False)):
        assert CapturedSteps(mode).wanted(on_gpu) == expected
    steps = CapturedSteps("training")
    with torch.no_grad():
        assert not steps.wanted(on_gpu)
    with torch.autograd.set_detect_anomaly(True):
        assert not steps.wanted(on_gpu)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert not steps.wanted(on_gpu)
    with NoHostSync():
        assert not steps.wanted(on_gpu)
    assert not steps.wanted(batch("slabs"))
    on_gpu.pos.requires_grad = True
    assert not steps.wanted(on_gpu)


def test_ever_new_sizes_are_no_longer_captured(small, monkeypatch):
    monkeypatch.setattr(captured_training, "MAX_STEPS", 2)
    for count in (1, 40, 80, 160):
        loss_of(small, systems.collate([systems.single_atom()] * count)).backward()
    steps = small.captured_steps
    assert (steps.captures, steps.replays) == (2, 2)
    # After many replays there is time for another one, which takes the place of the oldest.
    steps.replays = captured_training.REPLAYS_A_CAPTURE
    loss_of(small, systems.collate([systems.single_atom()] * 160)).backward()
    assert (steps.captures, len(steps)) == (3, 2)
    assert [key[0].atoms for key in steps._captured] == [64, 192]


@pytest.mark.parametrize("structures", [16, 32, 64])
def test_few_sizes_serve_a_training_of_slabs(structures):
    """Sizes as of OC20: 20 to 200 atoms, about 20 neighbours each."""
    generator = torch.Generator().manual_seed(0)
    kept: list[PaddedSize] = []
    waste = []
    for _ in range(500):
        atoms = torch.randint(20, 200, (structures,), generator=generator)
        edges = int((atoms * (18 + 3 * torch.rand(structures, generator=generator))).sum())
        total = (int(atoms.sum()), edges, structures)
        fitting = [s for s in kept if s.holds(*total) and s.close_to(*total, MAX_EXCESS)]
        if not fitting:
            fitting = [PaddedSize.coarse(*total)]
            kept += fitting
        best = min(fitting, key=lambda size: (size.edges, size.atoms))
        assert best.holds(*total)
        waste.append(max(best.atoms / total[0], best.edges / total[1]) - 1.0)
    assert len(kept) <= MAX_STEPS
    assert sum(waste) / len(waste) < MAX_EXCESS


def test_copies_start_empty(small):
    made = CapturedSteps("always")
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert (twin.mode, len(twin)) == ("always", 0)
    with pytest.raises(ConfigError, match=r"model\.cuda_graphs"):
        CapturedSteps("sometimes")


def on_gpu(mode: str = "training", **settings) -> ESTHydraModel:
    made = small_model(dtype=torch.float32, **settings).cuda()
    made.captured_steps = CapturedSteps(mode)
    return made


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replayed_gradients_on_a_gpu(precision):
    made, plain = on_gpu(), on_gpu("never")
    for name in BATCHES * 2:
        found, expected = [], []
        for model_, out in ((made, found), (plain, expected)):
            model_.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                loss = loss_of(model_, batch(name, torch.float32).cuda())
            loss.backward()
            out.append(gradients(model_))
        assert_close(found[0], expected[0], GPU_TOLERANCE[precision])
    assert made.captured_steps.mode == "training"
    assert made.captured_steps.replays == 2 * len(BATCHES)


@needs_gpu
def test_two_forward_passes_on_a_gpu():
    made, plain = on_gpu(), on_gpu("never")
    data = [batch(name, torch.float32).cuda() for name in ("slabs", "others")]
    for model_ in (made, plain):
        loss_of(model_, data[0]).backward()
        model_.zero_grad(set_to_none=True)
        first, second = (loss_of(model_, d) for d in data)
        second.backward()
        first.backward()
    assert_close(gradients(made), gradients(plain), GPU_TOLERANCE["fp32"])
    assert made.captured_steps.replays == 2


@needs_gpu
def test_random_numbers_on_a_gpu():
    """Every replay draws its own, and captures cost none."""
    made = on_gpu(alpha_drop=0.3, drop_path=0.5)
    data = batch("larger", torch.float32).cuda()
    torch.cuda.manual_seed(5)
    first = [loss_of(made, data).item() for _ in range(6)]
    assert len(set(first)) == 6
    torch.cuda.manual_seed(5)
    again = [loss_of(made, data).item() for _ in range(6)]
    assert again == pytest.approx(first, rel=1e-4)
    assert made.captured_steps.captures == 1


@needs_gpu
def test_a_step_that_waits_is_run_plainly_on_a_gpu(caplog):
    made = on_gpu(alpha_drop=0.3)
    forward = made.backbone.norm.forward
    made.backbone.norm.forward = lambda x: forward(x) * float(x.detach().isfinite().all().item())
    data = batch("slabs", torch.float32).cuda()
    for _ in range(2):
        loss_of(made, data).backward()
    assert made.captured_steps.mode == "never"
    assert torch.isfinite(gradients(made)).all()
    assert len(caplog.records) == 1
