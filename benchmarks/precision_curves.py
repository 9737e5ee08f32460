"""Training curves in bfloat16 beside TF32: same data, same order, same start, as CSV.

    python benchmarks/precision_curves.py --data oc20 --steps 300 --runs tf32:0 bf16:0 tf32:1

`--data` is a folder of OC20 S2EF LMDBs as training reads it (`data.root`). Every run is
``precision:seed``; the seed draws the weights and the dropout. Two seeds of one precision show how
large chance is. Batches and graphs are made once, on the device, so that all runs see the same.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import compose, initialize_config_module
from measuring.models import flat
from measuring.timing import autocast, use_precision

from est_ocp.data import release_workers

COLUMNS = (
    "device", "model", "batch", "precision", "seed", "split", "step", "loss", "energy_mae",
    "force_mae", "seconds",
)  # fmt: skip


def load(loader: Any, count: int, graph: Any, device: str) -> list[Any]:
    """Return the first ``count`` batches of a loader on the device, with their graphs."""
    made: list[Any] = []
    while len(made) < count:
        for batch in loader:
            batch = batch.to(device)
            found = graph(batch)
            batch["graph_edge_index"], batch["graph_edge_vec"] = found.edge_index, found.vec
            made.append(batch)
            if len(made) == count:
                break
    release_workers(loader)
    return made


class Scale:
    """Means and spreads of the labels in the training batches."""

    def __init__(self, data: list[Any]) -> None:
        energy = torch.cat([batch.energy for batch in data]).float()
        forces = torch.cat([batch.forces for batch in data]).float()
        self.mean, self.std = energy.mean(), energy.std()
        self.forces = forces.square().mean().sqrt()

    def errors(self, out: dict[str, torch.Tensor], batch: Any) -> tuple[torch.Tensor, ...]:
        """Loss of OC20's S2EF training and mean absolute errors in eV and eV/Angstrom."""
        energy = out["energy"].float() - (batch.energy.float() - self.mean) / self.std
        forces = out["forces"].float() - batch.forces.float() / self.forces
        free = forces[batch.fixed == 0]
        loss = 4 * energy.abs().mean() + 100 * free.norm(dim=-1).mean()
        return loss, energy.abs().mean() * self.std, free.abs().mean() * self.forces


class Run:
    """One training."""

    def __init__(self, text: str, arguments: argparse.Namespace, cfg: Any, steps: int) -> None:
        self.precision, seed = text.split(":")
        self.seed = int(seed)
        use_precision(self.precision)
        torch.manual_seed(self.seed)
        self.model = hydra.utils.instantiate(cfg.model).to(arguments.device)
        self.autocast = autocast(self.precision, arguments.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=arguments.lr, weight_decay=1e-3, fused=True
        )
        warm = max(1, steps // 20)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda i: min((i + 1) / warm, 0.5 * (1 + math.cos(math.pi * i / steps))),
        )

    def train(self, data: list[Any], scale: Scale) -> list[tuple[float, ...]]:
        """Train on the batches in order; errors of every batch before its step."""
        self.model.train()
        rows = []
        for batch in data:
            self.optimizer.zero_grad(set_to_none=True)
            with self.autocast:
                out = flat(self.model(batch))
            errors = scale.errors(out, batch)
            errors[0].backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 100.0)
            self.optimizer.step()
            self.schedule.step()
            rows.append(torch.stack([e.detach() for e in errors]))
        return [tuple(row) for row in torch.stack(rows).tolist()]

    @torch.no_grad()
    def evaluate(self, data: list[Any], scale: Scale) -> tuple[float, ...]:
        """Mean of the errors over the batches."""
        self.model.eval()
        with self.autocast:
            rows = [torch.stack(scale.errors(flat(self.model(b)), b)) for b in data]
        return tuple(torch.stack(rows).mean(0).tolist())


def main(argv: Sequence[str] | None = None) -> None:
    """Train every run and write the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of OC20 S2EF LMDBs")
    parser.add_argument("--model", default="est_s2ef_8layer", help="config of the group `model`")
    parser.add_argument("--runs", nargs="+", default=["tf32:0", "bf16:0", "tf32:1"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--eval-batches", type=int, default=16)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--compile", choices=("never", "training"), default="training")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--every", type=int, default=5, help="steps averaged to one row")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/speed_curves.csv"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides after --")
    arguments = parser.parse_args(argv)
    with initialize_config_module("est_ocp.configs", version_base=None):
        cfg = compose(
            "train_s2ef",
            [
                f"model={arguments.model}", f"data.root={arguments.data}",
                f"batch_size={arguments.batch}", f"eval_batch_size={arguments.batch}",
                f"cluster.num_workers={arguments.workers}", *arguments.overrides,
            ],
        )  # fmt: skip
    # Models without that key (debug settings) are trained as they are.
    if "compile_layers" in cfg.model.backbone:
        cfg.model.backbone.compile_layers = arguments.compile
    model = hydra.utils.instantiate(cfg.model)
    graph = model.backbone.radius_graph
    names = ("train_dataloader", "eval_dataloader")
    loaders = [hydra.utils.instantiate(cfg.runner[name]) for name in names]
    train = load(loaders[0], arguments.steps, graph, arguments.device)
    held_out = load(loaders[1], arguments.eval_batches, graph, arguments.device)
    scale = Scale(train)
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for text in arguments.runs:
            run = Run(text, arguments, cfg, arguments.steps)
            start = time.perf_counter()
            rows = run.train(train, scale)
            seconds = round(time.perf_counter() - start, 1)
            about = (name, arguments.model, arguments.batch, run.precision, run.seed)
            for first in range(0, len(rows), arguments.every):
                part = rows[first : first + arguments.every]
                means = [f"{statistics.mean(column):.6g}" for column in zip(*part, strict=True)]
                writer.writerow([*about, "train", first + len(part), *means, seconds])
            values = [f"{value:.6g}" for value in run.evaluate(held_out, scale)]
            writer.writerow([*about, "val", len(rows), *values, seconds])
            file.flush()
            print(text, f"{seconds} s, held out: loss, energy, force", *values, file=sys.stderr)


if __name__ == "__main__":
    main()
