"""Errors of lower precisions, with and without the fused kernels, against float32.

    python benchmarks/s2ef_precision.py --model est_s2ef_8layer --csv

Prints relative errors (norm of the difference over norm) of energies, forces and the gradient of
the loss, for random weights and the same batch; dropout is off.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from measuring.machine import facts
from measuring.models import build, flat, loss_of
from measuring.records import CsvFile
from measuring.timing import autocast, use_precision
from slabs import batches

#: Precision, fused kernels. Float32 without TF32, the reference, uses none.
SETTINGS = (("tf32", False), ("tf32", True), ("bf16", False), ("bf16", True))
COLUMNS = (
    "model", "precision", "fused_kernels", "energy", "forces", "gradient", "card", "torch",
    "triton", "fairchem", "date",
)  # fmt: skip


def run(model: torch.nn.Module, batch: object, precision: str) -> list[torch.Tensor]:
    """Return energies, forces and the gradient of the loss."""
    use_precision(precision)
    model.zero_grad()
    with autocast(precision, next(model.parameters()).device.type):
        out = flat(model(batch))
    loss_of(out, batch).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return [out["energy"].detach().float(), out["forces"].detach().float(), gradient.float()]


def main(argv: Sequence[str] | None = None) -> None:
    """Print one JSON line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="est_s2ef_8layer", help="config of the group `model`")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder")
    parser.add_argument("--csv", action="store_true", help="write OUT/speed_precision.csv too")
    arguments = parser.parse_args(argv)
    file = CsvFile(arguments.out / "speed_precision.csv", COLUMNS) if arguments.csv else None
    quiet = [
        "++model.backbone.alpha_drop=0.0",
        "++model.backbone.drop_path=0.0",
        "++model.backbone.compile_layers=never",
    ]
    models = {}
    for fused in (False, True):
        torch.manual_seed(0)
        overrides = [*quiet, f"++model.backbone.fused_kernels={str(fused).lower()}"]
        models[fused] = build(arguments.model, overrides, arguments.device).train()
    batch = batches(arguments.batch, 1, seed=3)[0].to(arguments.device)
    reference = run(models[False], batch, "fp32")
    machine = facts(arguments.device)
    for precision, fused in SETTINGS:
        errors = [
            ((mine - theirs).norm() / theirs.norm()).item()
            for mine, theirs in zip(run(models[fused], batch, precision), reference, strict=True)
        ]
        row = {"model": arguments.model, "precision": precision, "fused_kernels": fused}
        row |= dict(zip(("energy", "forces", "gradient"), errors, strict=True))
        print(json.dumps(row | {"card": machine["card"]}), flush=True)
        print(f"{precision}, fused_kernels={fused}: done", file=sys.stderr, flush=True)
        if file is not None:
            file.add(row | machine)


if __name__ == "__main__":
    main()
