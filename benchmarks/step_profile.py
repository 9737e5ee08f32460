"""Kernels of one training step and one inference step, by part of the model, as a CSV file.

    python benchmarks/step_profile.py --precision bf16 --batch 32

Writes OUT/speed_kernels.csv: every kernel's calls, time, multiply-adds (where its operator is a
known product) and bytes of operands; prints the sums of the parts. Parts come from the names of
kernels and operators; matrix products are told apart by their sizes (edges, points, nodes).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from measuring.machine import facts, roofs
from measuring.models import build, compile_layers, inference_step, training_step
from measuring.plan import PRECISIONS
from measuring.records import CsvFile
from measuring.tables import markdown
from measuring.timing import measure, use_precision
from measuring.trace import Shapes, profiled, summary
from slabs import batches

COLUMNS = (
    "step", "part", "kernel", "operator", "calls", "ms", "gflop", "gbyte", "wall_ms", "precision",
    "batch", "atoms", "edges", "roof_tflop_s", "roof_gb_s", "card", "torch", "triton", "fairchem",
    "date",
)  # fmt: skip


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="est_s2ef_8layer", help="config of the group `model`")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--steps", nargs="+", choices=("train", "infer"), default=["train", "infer"]
    )
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides after --")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Profile, write, print."""
    arguments = parse(argv)
    device, precision = arguments.device, arguments.precision
    use_precision(precision)
    torch.manual_seed(0)
    model = build(arguments.model, arguments.overrides, device)
    compile_layers(model, arguments.compile)
    data = [b.to(device) for b in batches(arguments.batch, 2, seed=1)]
    batch = data[0]
    atoms = int(batch.natoms.sum())
    edges = model.backbone.radius_graph(batch).edge_index.shape[1]
    points = len(model.backbone.blocks[0].update.transform.to_points_matrix)
    common = facts(device) | roofs(precision, device)
    common |= {"precision": precision, "batch": arguments.batch, "atoms": atoms, "edges": edges}
    file = CsvFile(arguments.out / "speed_kernels.csv", COLUMNS)
    for name in arguments.steps:
        model.train(name == "train")
        make = training_step if name == "train" else inference_step
        step = make(model, precision, device)
        wall = measure(step, data, steps=4, warm=4)["ms"]
        kernels = profiled(lambda step=step: step(batch), device)
        rows = summary(kernels, Shapes(edges, atoms * points))
        for row in rows:
            file.add(common | row | {"step": name, "wall_ms": wall})
        print(f"{name}: {wall:.1f} ms a step, {atoms} atoms, {edges} edges\n{parts_table(rows)}\n")
        print(f"{name}: done", file=sys.stderr, flush=True)
        model.zero_grad(set_to_none=True)


def parts_table(rows: Sequence[dict]) -> str:
    """Sums of the parts, the longest first."""
    parts: dict[str, list[float]] = {}
    for row in rows:
        total = parts.setdefault(row["part"], [0.0, 0.0, 0.0, 0.0])
        for place, name in enumerate(("calls", "ms", "gflop", "gbyte")):
            total[place] += row[name]
    lines = [
        [part, f"{calls:.0f}", f"{ms:.2f}", f"{gflop:.0f}", f"{gbyte:.2f}"]
        for part, (calls, ms, gflop, gbyte) in sorted(parts.items(), key=lambda i: -i[1][1])
    ]
    return markdown(["part", "kernels", "ms", "GFLOP", "GB"], lines)


if __name__ == "__main__":
    main()
