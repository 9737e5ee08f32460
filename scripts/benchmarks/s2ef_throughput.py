"""Throughput of a model config in training and inference, as JSON lines.

    python scripts/benchmarks/s2ef_throughput.py --run bf16:16 bf16:64:compile

Training is forward, loss, backward and AdamW on batches that are on the device already; inference
is the forward pass without gradients. Both include the search for neighbours. Times are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hydra
import torch
from hydra import compose, initialize_config_module
from slabs import batches
from torch.profiler import ProfilerActivity, profile

PRECISIONS = ("fp32", "tf32", "bf16")
NUM_BATCHES = 4


@dataclass(frozen=True)
class Setting:
    """One row of the result: precision, structures a batch, compiled or not."""

    precision: str
    batch: int
    options: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read ``precision:batch[:option...]``."""
        precision, batch, *options = text.split(":")
        if precision not in PRECISIONS:
            raise SystemExit(f"'{text}': the precision must be one of {', '.join(PRECISIONS)}")
        return cls(precision, int(batch), tuple(options))


def build(model: str, overrides: list[str], device: str) -> torch.nn.Module:
    """Return the model of the config group ``model`` with random weights."""
    with initialize_config_module("est_ocp.configs", version_base=None):
        cfg = compose("train_s2ef", [f"model={model}", *overrides])
    return hydra.utils.instantiate(cfg.model).to(device)


def flat(out: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors by task of the heads' outputs."""
    return {name: value[name] if isinstance(value, dict) else value for name, value in out.items()}


def loss_of(out: dict[str, Any], batch: Any) -> torch.Tensor:
    """OC20's S2EF loss."""
    out = flat(out)
    energy = (out["energy"].float() - batch.energy).abs().mean()
    return 4 * energy + 100 * (out["forces"].float() - batch.forces).norm(dim=-1).mean()


def timed(step: Callable[[Any], None], data: list[Any], steps: int, warm: int) -> list[float]:
    """Return the seconds of every step after the warm-up."""
    cuda = data[0].pos.is_cuda
    times = []
    for i in range(warm + steps):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        step(data[i % len(data)])
        if cuda:
            torch.cuda.synchronize()
        if i >= warm:
            times.append(time.perf_counter() - start)
    return times


def measure(
    model: torch.nn.Module, setting: Setting, modes: list[str], steps: int, device: str
) -> dict[str, Any]:
    """Return the row of one setting."""
    tf32 = setting.precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    if hasattr(model.backbone, "call_layer"):
        model.backbone.call_layer.mode = "always" if "compile" in setting.options else "never"
    data = [b.to(device) for b in batches(setting.batch, NUM_BATCHES, seed=1)]
    atoms = statistics.mean(int(b.natoms.sum()) for b in data)
    autocast = torch.autocast(
        torch.device(device).type, dtype=torch.bfloat16, enabled=setting.precision == "bf16"
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=1e-3)

    def train(batch: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            out = model(batch)
        loss_of(out, batch).backward()
        optimizer.step()

    def infer(batch: Any) -> None:
        with torch.no_grad(), autocast:
            model(batch)

    row: dict[str, Any] = {
        "precision": setting.precision,
        "batch": setting.batch,
        "options": list(setting.options),
        "atoms": atoms,
    }
    for mode in modes:
        model.train(mode == "train")
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        step = train if mode == "train" else infer
        try:
            times = timed(step, data, steps, warm=NUM_BATCHES)
        except torch.cuda.OutOfMemoryError:
            row[f"{mode}_error"] = "out of memory"
            optimizer.zero_grad(set_to_none=True)
            continue
        median = statistics.median(times)
        row |= {
            f"{mode}_ms": round(1e3 * median, 2),
            f"{mode}_atoms_s": round(atoms / median),
            f"{mode}_total_s": round(time.perf_counter() - start, 1),
        }
        if device == "cuda":
            row[f"{mode}_peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        if "profile" in setting.options:
            activities = [ProfilerActivity.CPU]
            if device == "cuda":
                activities.append(ProfilerActivity.CUDA)
            with profile(activities=activities) as record:
                step(data[0])
                if device == "cuda":
                    torch.cuda.synchronize()
            key = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
            print(record.key_averages().table(sort_by=key, row_limit=35, max_name_column_width=70))
    return row


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="est_s2ef_8layer", help="config of the group `model`")
    parser.add_argument("--run", nargs="+", default=["fp32:2"], help="precision:batch[:option...]")
    parser.add_argument("--modes", nargs="+", default=["train", "infer"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides after --")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = build(arguments.model, arguments.overrides, arguments.device)
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    for text in arguments.run:
        setting = Setting.parse(text)
        row = measure(model, setting, arguments.modes, arguments.steps, arguments.device)
        print(json.dumps({"model": arguments.model, "device": name, **row}), flush=True)


if __name__ == "__main__":
    main()
