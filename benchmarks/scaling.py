"""Time and memory of training against atoms, neighbours, points, degree L and layers; exponents.

    python benchmarks/scaling.py --precision bf16

Writes OUT/speed_scaling.csv (one row a setting), OUT/speed_exponents.csv and OUT/speed_scaling.png.
One setting is varied at a time, the others stay at the model's config. Layers are not compiled:
every setting would need a compilation of its own. On GPUs timed steps are replayed as CUDA graphs,
or else all settings would wait for launches, and for equally long. Memory is what a step without
graphs needs above weights, gradients and the optimiser's state: the peak on GPUs, on the CPU what
autograd keeps.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from measuring.kept_bytes import KeptBytes
from measuring.machine import facts
from measuring.models import build, training_step, use_graphs
from measuring.plan import PRECISIONS
from measuring.records import CsvFile, read, write
from measuring.timing import measure, use_precision
from report.exponents import LABELS, exponents, exponents_table, plot
from slabs import batches

COLUMNS = (
    "sweep", "x", "setting", "batch", "graphs", "atoms", "edges", "ms", "spread_percent",
    "memory_gib", "error", "model", "precision", "card", "torch", "triton", "fairchem", "date",
)  # fmt: skip
EXPONENTS = ("sweep", "quantity", "exponent", "standard_error", "rows")


@dataclass(frozen=True)
class Setting:
    """One point of a sweep.

    Attributes
    ----------
    sweep : str
        A key of :data:`report.exponents.LABELS`.
    value : int
        Of what is varied; for atoms the structures a batch.
    batch : int
        Structures a batch.
    overrides : tuple of str
        Hydra overrides of the model's config.
    """

    sweep: str
    value: int
    batch: int
    overrides: tuple[str, ...] = ()


def settings(batch: int, sizes: Mapping[str, Sequence[int]]) -> list[Setting]:
    """All points of all sweeps.

    Parameters
    ----------
    batch : int
        Structures a batch where that is not what varies.
    sizes : mapping
        Values of each sweep.
    """
    keys: dict[str, Callable[[int], tuple[str, ...]]] = {
        "neighbours": lambda n: (f"model.backbone.graph.max_neighbors={n}",),
        "points": lambda n: (f"model.backbone.update.rule.num_points={n}",),
        "degree": lambda n: (
            f"model.backbone.lmax={n}", f"model.backbone.mmax={min(n, 2)}",
            # Exact for the largest L of the sweep.
            "model.backbone.update.rule.num_points=128",
        ),
        "layers": lambda n: (f"model.backbone.num_layers={n}",),
    }  # fmt: skip
    out = [Setting("atoms", size, size) for size in sizes["atoms"]]
    for sweep, overrides in keys.items():
        out += [Setting(sweep, value, batch, overrides(value)) for value in sizes[sweep]]
    return out


SIZES = {
    "atoms": (2, 4, 8, 16, 32), "neighbours": (5, 10, 20, 40), "points": (48, 96, 128, 194, 256),
    "degree": (2, 3, 4, 5, 6), "layers": (2, 4, 8, 12),
}  # fmt: skip
QUICK_SIZES = {
    "atoms": (1, 2, 3), "neighbours": (2, 4, 8), "points": (24, 48, 96), "degree": (1, 2, 3),
    "layers": (1, 2, 3),
}  # fmt: skip


def step_memory(
    model: torch.nn.Module, step: Callable[[AtomicData], torch.Tensor], data: list[AtomicData]
) -> int:
    """Bytes that a step needs above what is there before and after it; the largest batch counts."""
    if not data[0].pos.is_cuda:
        counter = KeptBytes(model)
        with counter.hooks():
            step(data[0])
        return counter.total
    # The first step makes the gradients and the optimiser's state.
    step(data[0])
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for batch in data:
        step(batch)
    return max(torch.cuda.max_memory_allocated() - held, 0)


def figures(
    setting: Setting, model: str, precision: str, steps: int, device: str, graphs: bool
) -> dict:
    """Time and memory of one setting."""
    use_precision(precision)
    torch.manual_seed(0)
    made = build(model, setting.overrides, device).train()
    use_graphs(made, False)
    data = [b.to(device) for b in batches(setting.batch, 2, seed=1)]
    edges = sum(made.backbone.radius_graph(b).edge_index.shape[1] for b in data) / len(data)
    step = training_step(made, precision, device)
    memory = step_memory(made, step, data)
    use_graphs(made, graphs)
    found = measure(step, data, steps, warm=2 * len(data))
    x = {"atoms": found["atoms"], "neighbours": edges / found["atoms"]}
    return {
        "x": round(x.get(setting.sweep, setting.value), 3),
        "graphs": graphs,
        "atoms": found["atoms"],
        "edges": edges,
        "ms": found["ms"],
        "spread_percent": found["spread_percent"],
        "memory_gib": round(memory / 2**30, 6),
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="est_s2ef_8layer", help="config of the group `model`")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--batch", type=int, default=8, help="where it is not varied")
    parser.add_argument("--only", nargs="+", choices=tuple(LABELS), default=list(LABELS))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument(
        "--graphs", action=argparse.BooleanOptionalAction, default=True,
        help="replay timed steps as CUDA graphs",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=60.0, help="none begins after that")
    parser.add_argument("--quick", action="store_true", help="a tiny model and tiny sweeps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, fit, draw."""
    arguments = parse(argv)
    model, batch, sizes = arguments.model, arguments.batch, SIZES
    if arguments.quick:
        model, batch, sizes = "est_s2ef_debug", 1, QUICK_SIZES
    chosen = [s for s in settings(batch, sizes) if s.sweep in arguments.only]
    common = facts(arguments.device) | {"model": model, "precision": arguments.precision}
    path = arguments.out / "speed_scaling.csv"
    file = CsvFile(path, COLUMNS)
    started = time.time()
    for number, setting in enumerate(chosen, start=1):
        row = {"sweep": setting.sweep, "x": setting.value, "batch": setting.batch}
        row |= {"setting": " ".join(setting.overrides)} | common
        try:
            if time.time() - started > 60 * arguments.minutes:
                raise TimeoutError("no time left")
            graphs = arguments.graphs and arguments.device == "cuda"
            row |= figures(
                setting, model, arguments.precision, arguments.steps, arguments.device, graphs
            )
        except torch.OutOfMemoryError:
            row["error"] = "out of memory"
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:160]
        gc.collect()
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        file.add(row)
        what = row.get("error") or f"{row['ms']} ms, {row['memory_gib']:.3f} GiB"
        text = f"[{number}/{len(chosen)}] {setting.sweep} {setting.value}: {what}"
        print(f"{text}, {time.time() - started:.0f} s", file=sys.stderr, flush=True)
    rows = read(path)
    fits = exponents(rows)
    write(arguments.out / "speed_exponents.csv", EXPONENTS, fits)
    print(exponents_table(fits))
    try:
        plot(rows, arguments.out / "speed_scaling.png")
    except ModuleNotFoundError as error:
        print(f"no figure: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
