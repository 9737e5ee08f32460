"""Counts of work: the EST block's floors, and the kernels of a profiled step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from est_ocp.nn import ESTUpdateBlock
from est_ocp.sphere import make_rule

KERNELS = Path(__file__).parents[2] / "est_ocp" / "nn" / "triton"


@pytest.mark.parametrize("recompute", [False, True])
def test_operations_of_the_block(bench, recompute):
    channels, points, spherical, steerable = 16, 24, (2, 32), (3, 8)
    block = ESTUpdateBlock(
        channels, 2, make_rule("design", points),
        num_spherical_experts=spherical[0], spherical_expert_channels=spherical[1],
        num_steerable_experts=steerable[0], steerable_expert_channels=steerable[1],
        recompute_experts=recompute,
    )  # fmt: skip
    work = bench("measuring.est_block").count(block, 10, 2, backward=False)
    transforms = 2 * points * 9 * channels
    attention = points * channels * (4 * channels + 2 * points)
    on_sphere = 2 * points * channels * spherical[0] * spherical[1]
    hidden = steerable[0] * steerable[1]
    on_coefficients = 2 * 9 * channels * hidden + 2 * channels * hidden
    small = channels * (2 * 5 + 2)
    products = transforms + attention + on_sphere + on_coefficients + small
    assert work.operations == pytest.approx(10 * 2 * products, rel=0.01)
    assert work.least_bytes < work.staged_bytes
    both = bench("measuring.est_block").count(block, 20, 2, backward=True)
    # Two products backward for each one forward; constants have no gradient.
    assert 2.9 < both.operations / (2 * work.operations) <= 3.0
    assert block.mixture.spherical.recompute == recompute


class OneMap(torch.nn.Module):
    """The least that a block can be."""

    lmax, channels = 0, 4

    def __init__(self) -> None:
        super().__init__()
        self.map = torch.nn.Linear(4, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(x)


def test_weights_are_moved_once_for_all_nodes(bench):
    count = bench("measuring.est_block").count
    forward = count(OneMap(), 10, 2, backward=False)
    assert forward.staged_bytes == 2 * (10 * 4 + 20 + 10 * 5)
    assert forward.operations == 2 * 10 * 20
    both = count(OneMap(), 10, 2, backward=True)
    # Gradient of x: gradient and weights in, as much as x out. Of the weights: both in, one out.
    assert both.staged_bytes == forward.staged_bytes + 2 * 2 * (10 * 4 + 20 + 10 * 5)


def test_what_is_repeated_is_moved_once(bench):
    traffic = bench("measuring.est_block")._ProductElements()
    with traffic:
        torch.bmm(torch.ones(2, 3).expand(7, 2, 3), torch.ones(7, 3, 4))
    assert traffic.elements == 6 + 84 + 56


def test_floors_are_times(bench):
    work = bench("measuring.est_block").BlockWork(2e9, 1e6, 4e6)
    floors = work.floors(tflop_s=1.0, gb_s=100.0)
    assert floors == pytest.approx({"arithmetic_ms": 2.0, "memory_ms": 0.01, "staged_ms": 0.04})


def test_products_count_as_pytorch_counts_them(bench):
    counts = bench("measuring.kernel_counts")
    a, b, batched = torch.ones(3, 4), torch.ones(4, 5), torch.ones(2, 3, 4)
    calls = {
        "aten::mm": (torch.mm, (a, b)),
        "aten::addmm": (torch.addmm, (torch.ones(5), a, b)),
        "aten::bmm": (torch.bmm, (batched, batched.transpose(1, 2))),
    }
    for name, (function, arguments) in calls.items():
        with FlopCounterMode(display=False) as counter:
            out = function(*arguments)
        dims = [list(argument.shape) for argument in arguments]
        assert counts.operations(name, dims) == counter.get_total_flops()
        assert counts.result_elements(name, dims) == out.numel()
    query = [2, 1, 6, 8]
    assert (
        counts.operations("aten::scaled_dot_product", [query, query, query]) == 2 * 2 * 2 * 36 * 8
    )
    assert counts.operations("aten::mul", [[3], [3]]) == 0


def test_every_operator_of_ours_has_a_part_and_a_count(bench):
    trace, counts = bench("measuring.trace"), bench("measuring.kernel_counts")
    shapes = trace.Shapes(edges=7, sphere_rows=11)
    names = [
        name
        for file in KERNELS.glob("*.py")
        for name in re.findall(r'custom_op\(\s*"(est_ocp::\w+)"', file.read_text())
    ]
    assert names
    for name in names:
        part = trace.part_of(trace.Kernel("_forward_kernel", name, 1.0), shapes)
        assert part != trace.OTHER, f"{name}: add it to measuring.trace.RULES"
        assert counts.known(name), f"{name}: add it to measuring.kernel_counts"


def test_results_of_kernels_of_functions(bench):
    counts = bench("measuring.kernel_counts")
    nodes, harmonics, own, points, channels = 3, 9, 8, 26, 16
    rows, functions = [nodes, harmonics + own, channels], [nodes, points, own]
    to_points, back = [points, harmonics], [harmonics, points]
    silu = [rows, functions, [channels], to_points, back]
    size = nodes * points * channels
    assert counts.operations("est_ocp::silu_on_functions", silu) == 2 * size * 26
    grad = [nodes, harmonics, channels]
    of_experts = [2, nodes, harmonics, channels // 2]
    elements = counts.result_elements("est_ocp::silu_on_functions_backward", [of_experts, *silu])
    assert elements == nodes * (17 * channels + points * own)
    norm = [grad, [], [nodes, own, channels], functions, to_points]
    assert counts.operations("est_ocp::functions_norm", norm) == 2 * size * 17
    assert counts.result_elements("est_ocp::functions_norm_backward", [rows, *norm]) == elements
    attention = [grad, grad, to_points, [points, points], [], []]
    assert counts.result_elements("est_ocp::attention_functions", attention) == nodes * points * 8


def test_results_of_gated_degrees(bench):
    counts = bench("measuring.kernel_counts")
    blocks, scalars, gate = [[3, 3, 16], [3, 5, 16]], [3, 3, 16], [3, 2]
    forward = [blocks, scalars, gate]
    assert counts.result_elements("est_ocp::gated_degrees", forward) == 3 * 9 * 16
    backward = [[[3, 1, 16], *blocks], *forward]
    elements = counts.result_elements("est_ocp::gated_degrees_backward", backward)
    assert elements == 3 * (8 + 3) * 16 + 6


@pytest.mark.parametrize(
    ("kernel", "operator", "dims", "part"),
    [
        ("nvjet_hsh_128x256", "aten::mm", ([70, 4], [4, 5]), "GEMMs on edges"),
        ("cutlass_80_gemm", "aten::addmm", ([5], [22, 4], [4, 5]), "GEMMs on the sphere"),
        ("sm90_xmma_gemm", "aten::mm", ([3, 4], [4, 5]), "GEMMs on nodes"),
        ("triton_poi_fused_silu_3", "triton_poi_fused_silu_3", (), "elementwise, compiled"),
        ("cudnn_generated_fort_native_sdpa", "", (), "EST attention"),
        ("multi_tensor_apply_kernel", "aten::_foreach_add_", (), "optimiser"),
        ("_forward_kernel", "est_ocp::silu_on_points", (), "S2 activation"),
        ("_forward_kernel", "est_ocp::functions_norm", (), "EST norms"),
        ("Memcpy DtoD", "aten::copy_", (), "other"),
    ],
)
def test_parts_of_kernels(bench, kernel, operator, dims, part):
    trace = bench("measuring.trace")
    shapes = trace.Shapes(edges=7, sphere_rows=11)
    assert trace.part_of(trace.Kernel(kernel, operator, 1.0, dims), shapes) == part


def test_kernels_of_a_trace(bench):
    trace = bench("measuring.trace")
    operands = {"Input Dims": [[70, 4], [4, 5]], "Input type": ["c10::BFloat16"] * 2}
    arguments = {"External id": 5} | operands
    events = [
        {"cat": "cpu_op", "name": "aten::mm", "args": arguments},
        {"cat": "kernel", "name": "reduce", "dur": 1.0, "args": {"External id": 5}},
        {"cat": "kernel", "name": "nvjet", "dur": 9.0, "args": {"External id": 5}},
        {"cat": "kernel", "name": "alone", "dur": 3.0, "args": {}},
    ]
    found = {kernel.name: kernel for kernel in trace.gpu_kernels(events)}
    assert found["nvjet"].gflop == pytest.approx(2 * 70 * 4 * 5 / 1e9)
    assert found["nvjet"].gbyte == pytest.approx(2 * (280 + 20 + 350) / 1e9)
    assert found["reduce"].gflop == 0
    rows = trace.summary(found.values(), trace.Shapes(7, 11))
    assert [row["part"] for row in rows] == ["GEMMs on edges", "other", "GEMMs on edges"]
    assert sum(row["ms"] for row in rows) == pytest.approx(0.013)


def test_profile_of_a_tiny_step(bench, tmp_path, capsys):
    profile, records = bench("step_profile"), bench("measuring.records")
    options = [
        "--model",
        "est_s2ef_debug",
        "--batch",
        "2",
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]
    # So few points that features are made at all of them.
    rule = "model.backbone.update.rule={kind: lebedev, num_points: 6}"
    profile.main([*options, "--out", str(tmp_path), "--", "model.backbone.alpha_drop=0.0", rule])
    rows = records.read(tmp_path / "speed_kernels.csv")
    assert set(rows[0]) == set(profile.COLUMNS)
    assert {row["step"] for row in rows} == {"train", "infer"}
    found = {row["part"] for row in rows}
    assert {"GEMMs on edges", "GEMMs on the sphere", "EST attention"} <= found
    flops = {s: sum(float(r["gflop"]) for r in rows if r["step"] == s) for s in ("train", "infer")}
    assert 2 < flops["train"] / flops["infer"] < 4
