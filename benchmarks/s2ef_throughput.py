"""Throughput of any model config in training and inference, as JSON lines.

    python benchmarks/s2ef_throughput.py --run bf16:16 bf16:64:compile

Training is forward, loss, backward and AdamW on batches that are on the device already; inference
is the forward pass without gradients. Both include the search for neighbours. Times are medians.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

import torch
from measuring.machine import card_name
from measuring.models import build, compile_layers, inference_step, training_step
from measuring.plan import PRECISIONS
from measuring.timing import measure, use_precision
from slabs import batches

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


def figures(
    model: torch.nn.Module, setting: Setting, modes: list[str], steps: int, device: str
) -> dict[str, Any]:
    """Return the row of one setting."""
    use_precision(setting.precision)
    compile_layers(model, "compile" in setting.options)
    data = [b.to(device) for b in batches(setting.batch, NUM_BATCHES, seed=1)]
    row: dict[str, Any] = {
        "precision": setting.precision,
        "batch": setting.batch,
        "options": list(setting.options),
    }
    for mode in modes:
        model.train(mode == "train")
        if device == "cuda":
            torch.cuda.empty_cache()
        make = training_step if mode == "train" else inference_step
        step = make(model, setting.precision, device)
        try:
            found = measure(step, data, steps, warm=NUM_BATCHES)
            row |= {f"{mode}_{name}": value for name, value in found.items()}
        except torch.OutOfMemoryError:
            row[f"{mode}_error"] = "out of memory"
        del step
        model.zero_grad(set_to_none=True)
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
    name = card_name(arguments.device)
    for text in arguments.run:
        setting = Setting.parse(text)
        row = figures(model, setting, arguments.modes, arguments.steps, arguments.device)
        print(json.dumps({"model": arguments.model, "device": name, **row}), flush=True)


if __name__ == "__main__":
    main()
