"""Training steps of the QM9 models on real molecules: rate, memory, and errors of fast arithmetic.

    est-ocp data qm9 --out data/qm9
    python benchmarks/qm9_throughput.py --data data/qm9 --run est_ga:tf32 est_ga:tf32:plain

A row is ``model:precision[:option...]`` with the names of configs/model/qm9_*.yaml; options are
``plain`` (no fused kernels), ``loose`` (no CUDA graphs), ``compile``. All twelve targets at once;
molecules and their edges lie on the device. Errors are those of outputs and of all gradients, norm
over norm, against the same weights in float32 without kernels. ``--profile`` adds the kernels that
take longest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import compose, initialize_config_module
from measuring.machine import commit, facts
from measuring.models import compile_layers, flat, training_step, use_graphs
from measuring.plan import PRECISIONS
from measuring.records import CsvFile
from measuring.timing import autocast, measure, use_precision
from measuring.trace import profiled
from molecules import batches

COLUMNS = (
    "model", "precision", "fused", "graphs", "compiled", "batch", "atoms", "edges", "parameters",
    "steps", "ms", "spread_percent", "molecules_s", "peak_gib", "first_s", "outputs_error",
    "gradients_error", "card", "torch", "triton", "fairchem", "commit", "date",
)  # fmt: skip
OPTIONS = ("plain", "loose", "compile")
#: Models with a key for their fused kernels.
KEYED = ("equiformer", "est_ga", "gotennet", "est_gata", "est", "debug")
NUM_BATCHES = 4


@dataclass(frozen=True)
class Row:
    """What is measured: a model, its precision, and which fast paths are on."""

    model: str
    precision: str
    options: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Row:
        """Read ``model:precision[:option...]``."""
        model, precision, *options = text.split(":")
        if precision not in PRECISIONS or not set(options) <= set(OPTIONS):
            raise SystemExit(
                f"'{text}': write model:precision[:option...], a precision of "
                f"{', '.join(PRECISIONS)}, options of {', '.join(OPTIONS)}"
            )
        return cls(model, precision, tuple(options))


def build(model: str, fused: bool, device: str) -> torch.nn.Module:
    """Model of one of the QM9 configs for all targets, random weights of one seed."""
    torch.manual_seed(0)
    with initialize_config_module("est_ocp.configs", version_base=None):
        words = [f"++model.backbone.fused_kernels={fused}"] if model in KEYED else []
        config = compose("train_qm9", [f"model=qm9_{model}", "tasks=qm9_all", *words])
    return hydra.utils.instantiate(config.model).to(device)


def loss_of(out: dict[str, Any], batch: Any) -> torch.Tensor:
    """A loss that every output reaches."""
    return flat(out)["target"].float().abs().mean()


def results(
    model: torch.nn.Module, batch: Any, precision: str, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs, and all gradients as one vector, without dropout."""
    use_precision(precision)
    model.eval()
    model.zero_grad(set_to_none=True)
    with autocast(precision, device):
        out = flat(model(batch))["target"].float()
    out.square().mean().backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return out.detach(), torch.cat(grads)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def measured(row: Row, data: Sequence[Any], steps: int, device: str) -> dict[str, Any]:
    """Figures of one row."""
    fused = "plain" not in row.options and row.model in KEYED
    reference = results(build(row.model, False, device), data[0], "fp32", device)
    model = build(row.model, fused, device)
    compile_layers(model, "compile" in row.options)
    found = results(model, data[0], row.precision, device)
    errors = [distance(a, b) for a, b in zip(found, reference, strict=True)]
    use_precision(row.precision)
    graphs = "loose" not in row.options and model.capturable
    use_graphs(model, graphs)
    model.train()
    figures = measure(
        training_step(model, row.precision, device, loss_of), data, steps, 2 * NUM_BATCHES
    )
    edges = sum(batch.graph_edge_index.shape[1] for batch in data) / len(data)
    rate = figures.pop("atoms_s") / figures["atoms"] * data[0].natoms.numel()
    return figures | {
        "model": row.model, "precision": row.precision, "fused": fused,
        "graphs": graphs, "compiled": "compile" in row.options,
        "batch": data[0].natoms.numel(), "edges": edges, "molecules_s": round(rate, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "outputs_error": errors[0], "gradients_error": errors[1],
    }  # fmt: skip


def profile(row: Row, data: Sequence[Any], device: str, count: int) -> None:
    """Print the kernels of one step that take longest."""
    model = build(row.model, "plain" not in row.options, device)
    use_precision(row.precision)
    model.train()
    use_graphs(model, False)
    step = training_step(model, row.precision, device, loss_of)
    for _ in range(3):
        step(data[0])
    sums: dict[tuple[str, str], list[float]] = {}
    for kernel in profiled(lambda: step(data[0]), device):
        total = sums.setdefault((kernel.operator, kernel.name), [0.0, 0.0, 0.0])
        for place, value in enumerate((kernel.ms, 1.0, kernel.gbyte)):
            total[place] += value
    everything = sum(total[0] for total in sums.values())
    print(f"{row.model} {row.precision}: {everything:.2f} ms of kernels", flush=True)
    for (operator, name), (ms, calls, gbyte) in sorted(sums.items(), key=lambda i: -i[1][0])[
        :count
    ]:
        print(f"{ms:8.3f} ms {calls:5.0f} x {gbyte:7.2f} GB  {operator[:40]:<40} {name[:90]}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder that `est-ocp data qm9` wrote")
    parser.add_argument("--run", nargs="+", required=True, help="model:precision[:option...]")
    parser.add_argument("--batch", type=int, default=128, help="molecules")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--profile", type=int, default=0, help="kernels that are printed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder")
    arguments = parser.parse_args(argv)
    rows = [Row.parse(text) for text in arguments.run]
    data = batches(arguments.data, arguments.batch, NUM_BATCHES)
    data = [batch.to(arguments.device) for batch in data]
    file = CsvFile(arguments.out / "qm9_throughput.csv", COLUMNS)
    for row in rows:
        try:
            found = measured(row, data, arguments.steps, arguments.device)
            if arguments.profile:
                profile(row, data, arguments.device, arguments.profile)
        except Exception as error:
            print(f"{row}: {type(error).__name__}: {str(error)[:600]}", flush=True)
            continue
        file.add(facts(arguments.device) | {"commit": commit()} | found)
        print(
            f"{':'.join((row.model, row.precision, *row.options)):<28}"
            f"{found['molecules_s']:9.0f} molecules/s {found['ms']:8.2f} ms"
            f"{found.get('peak_gib', 0):7.2f} GiB, errors {found['outputs_error']:.1e}"
            f" {found['gradients_error']:.1e}, warm-up {found['first_s']} s",
            flush=True,
        )
        if arguments.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
