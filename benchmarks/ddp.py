"""Training on several GPUs of one machine, each with batches of its own, through DDP.

    python benchmarks/ddp.py
    torchrun --standalone --nproc-per-node 2 benchmarks/ddp.py

Adds a row to OUT/speed_ddp.csv; the first command's row is what the others are compared with.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from measuring.machine import facts
from measuring.models import build, compile_layers, training_step, use_graphs
from measuring.plan import PRECISIONS
from measuring.records import CsvFile
from measuring.timing import measure, use_precision
from slabs import batches
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

COLUMNS = (
    "gpus", "precision", "batch", "compiled", "graphs", "ms", "spread_percent", "atoms_s",
    "peak_gib", "card", "torch", "triton", "fairchem", "date",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measure on as many processes as torchrun started, or on one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="est_s2ef_8layer", help="config of the group `model`")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--batch", type=int, default=32, help="structures a GPU")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder")
    arguments = parser.parse_args(argv)
    rank, size = (int(os.environ.get(name, d)) for name, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    device = arguments.device
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    use_precision(arguments.precision)
    torch.manual_seed(0)
    model = build(arguments.model, [], device).train()
    compile_layers(model, arguments.compile)
    use_graphs(model, arguments.graphs)
    data = [b.to(device) for b in batches(arguments.batch, 4, seed=1 + rank)]
    parallel = model
    if size > 1:
        distributed.init_process_group("nccl" if device == "cuda" else "gloo")
        parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    step = training_step(parallel, arguments.precision, device)
    found = measure(step, data, arguments.steps, warm=4)
    total = torch.tensor(found["atoms_s"], device=device)
    if size > 1:
        distributed.all_reduce(total)
        distributed.destroy_process_group()
    if rank == 0:
        row = {"gpus": size, "precision": arguments.precision, "batch": arguments.batch}
        row["compiled"] = arguments.compile and device == "cuda"
        row["graphs"] = arguments.graphs and device == "cuda"
        row |= {name: found[name] for name in ("ms", "spread_percent")} | facts(device)
        row |= {"atoms_s": round(total.item(), 1), "peak_gib": found.get("peak_gib", "")}
        CsvFile(arguments.out / "speed_ddp.csv", COLUMNS, keep=True).add(row)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
