"""Errors of lower precisions, with and without the fused kernels, against float32.

    python scripts/benchmarks/s2ef_precision.py --model est_s2ef_8layer

Prints relative errors (norm of the difference over norm) of energies, forces and the gradient of
the loss, for random weights and the same batch; dropout is off.
"""

from __future__ import annotations

import argparse
import json

import torch
from s2ef_throughput import build, flat, loss_of
from slabs import batches

#: Precision, fused kernels. Float32 without TF32, the reference, uses none.
SETTINGS = (("tf32", False), ("tf32", True), ("bf16", False), ("bf16", True))


def run(model: torch.nn.Module, batch: object, precision: str) -> list[torch.Tensor]:
    """Return energies, forces and the gradient of the loss."""
    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    model.zero_grad()
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        out = flat(model(batch))
    loss_of(out, batch).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return [out["energy"].detach().float(), out["forces"].detach().float(), gradient.float()]


def main() -> None:
    """Print one JSON line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="est_s2ef_8layer", help="config of the group `model`")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
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
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    for precision, fused in SETTINGS:
        errors = [
            ((mine - theirs).norm() / theirs.norm()).item()
            for mine, theirs in zip(run(models[fused], batch, precision), reference, strict=True)
        ]
        row = {"device": name, "precision": precision, "fused_kernels": fused}
        print(json.dumps(row | dict(zip(("energy", "forces", "gradient"), errors, strict=True))))


if __name__ == "__main__":
    main()
