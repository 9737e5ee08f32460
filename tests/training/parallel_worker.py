"""Float64 trainings on one and two ranks, each rank a fork of this process: run as a module.

``python -m tests.training.parallel_worker DATA OUT`` leaves ``OUT/<training>-rank<r>.pt``, what
each rank ended with, and ``OUT/reductions.pt``, the gradients of the loss's reductions.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from fairchem.core.common import distutils
from fairchem.core.modules.loss import DDPMTLoss, L2NormLoss
from omegaconf import OmegaConf
from torch.distributed.elastic.utils.distributed import get_free_port
from torchtnt.framework.callback import Callback

from est_ocp.cli.config import resolve
from est_ocp.training import SafeCheckpoint, TrainRunner
from tests.training.launch import DEBUG

#: 24 structures in batches of 10 in all: the last batch of each epoch has 4.
TOTAL_BATCH, STEPS = 10, 5
#: Structures of the reductions' batch, their atoms, and which rank holds them.
NATOMS, OWNERS = (3, 7, 2, 5), ((0, 1), (2, 3))


class Losses(Callback):
    """Keeps this rank's share of each step's loss."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_step_end(self, state: Any, unit: Any) -> None:
        """Read the last loss."""
        self.values.append(float(unit.last_loss))


def in_double(collate: Any) -> Any:
    """Return a collate function whose batches hold float64."""

    def collated(samples: list[Any]) -> Any:
        batch = collate(samples)
        for key in batch.keys():  # noqa: SIM118 - a batch is no mapping
            if torch.is_tensor(batch[key]) and batch[key].is_floating_point():
                batch[key] = batch[key].double()
        return batch

    return collated


def train(rank: int, world: int, data: Path, out: Path, name: str, run: str, steps: int) -> None:
    """Train on one rank and write what it ended with."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    cfg = resolve(
        DEBUG,
        [
            f"data.root={data}", f"job.run_dir={out}", f"job.timestamp_id={run}", "steps=10",
            f"batch_size={TOTAL_BATCH // world}", "max_eval_batches=1", "optim.ema_decay=0.9",
            "model.backbone.alpha_drop=0", "model.backbone.drop_path=0",
        ],
    )  # fmt: skip
    Path(cfg.job.metadata.checkpoint_dir).parent.mkdir(exist_ok=True, parents=True)
    OmegaConf.save(cfg, cfg.job.metadata.config_path)
    loaders = [hydra.utils.instantiate(cfg.runner[f"{k}_dataloader"]) for k in ("train", "eval")]
    for loader in loaders:
        loader.collate_fn = in_double(loader.collate_fn)
    options = dict(cfg.runner.train_eval_unit)
    model = hydra.utils.instantiate(options.pop("model")).double()
    unit = hydra.utils.instantiate({**options, "_partial_": True})(model=model)
    losses = Losses()
    runner = TrainRunner(
        *loaders,
        unit,
        {"losses": losses, "checkpoint": SafeCheckpoint(3)},
        max_steps=steps,
        max_eval_steps_per_epoch=1,
    )
    runner.job_config = cfg.job
    runner.load_state(None)
    runner.run()
    content = {
        "losses": losses.values,
        "model": unit.model.module.state_dict(),
        "ema": {k: v for k, v in unit.ema_model.state_dict().items() if k != "n_averaged"},
        "normalizers": {t.name: [t.normalizer.mean, t.normalizer.rmsd] for t in unit.tasks},
    }
    torch.save(content, out / f"{name}-rank{rank}.pt")


def reductions(rank: int, world: int, out: Path) -> None:
    """Write the gradient of each reduction of a loss over forces, averaged over the ranks."""
    generator = torch.Generator().manual_seed(1)
    forces = [torch.randn(n, 3, generator=generator) for n in NATOMS]
    free = [torch.arange(n) % 3 != 1 for n in NATOMS]
    mine = range(len(NATOMS)) if world == 1 else OWNERS[rank]
    found = {}
    for reduction in ("mean", "per_structure", "sum"):
        weight = torch.ones(3, requires_grad=True)
        prediction = torch.cat([forces[i] for i in mine]) * weight
        loss = DDPMTLoss(L2NormLoss(), reduction=reduction)(
            prediction,
            torch.ones_like(prediction),
            mult_mask=torch.cat([free[i] for i in mine]),
            natoms=torch.tensor([NATOMS[i] for i in mine]),
        )
        loss.backward()
        found[reduction] = distutils.all_reduce(weight.grad, average=True)
    torch.save(found, out / f"reductions-{world}-rank{rank}.pt")


def _rank(rank: int, world: int, port: int, function: Any, arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
        "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
    }  # fmt: skip
    backend = {"world_size": world, "distributed_backend": "gloo", "submit": False, "cpu": True}
    distutils.setup(backend)
    function(rank, world, *arguments)
    distutils.cleanup()


def on_ranks(world: int, function: Any, *arguments: Any) -> None:
    """Run a function on a number of ranks and wait for them."""
    context, port = multiprocessing.get_context("fork"), get_free_port()
    ranks = [
        context.Process(target=_rank, args=(rank, world, port, function, arguments))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    codes = [process.exitcode for process in ranks]
    if any(codes):
        sys.exit(f"ranks ended with {codes}")


def main(data: Path, out: Path) -> None:
    """All trainings."""
    on_ranks(1, train, data, out, "one", "one", STEPS)
    on_ranks(2, train, data, out, "two", "two", STEPS)
    on_ranks(2, train, data, out, "stopped", "cut", STEPS - 1)
    os.rename(out / "cut" / "checkpoints" / "final", out / "cut" / "final")
    on_ranks(2, train, data, out, "resumed", "cut", STEPS)
    for world in (1, 2):
        on_ranks(world, reductions, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
