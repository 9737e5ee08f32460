"""What a network says of a metal that it never met, with the embedding of another one.

    python scripts/studies/is2re_adsorption.py --data dft_adsorption.json --out runs/metal \
        --folds Au --models equiformer est --epochs 20 --keep-checkpoints
    python scripts/studies/is2re_embedding.py --folder runs/metal --metal Au

The embedding of an element that is not in the training set is the random vector of its start. Here
every model of ``is2re_adsorption.py`` that left a metal out predicts that metal's energies again:
as it is, with the embedding of each metal of the training set, with their mean, and with zeros. The
errors go into ``embeddings.csv``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from adsorption.structures import LATTICE
from adsorption.training import MODELS, Training, fold_folder
from ase.data import atomic_numbers
from csv_rows import append
from equivariance.checkpoints import build, read_trained

from est_ocp.data import create_dataset
from est_ocp.evaluation.checkpoint import read_checkpoint

COLUMNS = ("model", "held_out", "embedding", "mae", "bias")
UNTRAINED, MEAN, ZERO = "its own, untrained", "mean", "zero"
BATCH = 64


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="--out of is2re_adsorption.py")
    parser.add_argument("--metal", choices=list(LATTICE), required=True, help="that was left out")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["equiformer", "est"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="CSV file (default: in --folder)")
    return parser.parse_args(argv)


def structures(folder: Path, metal: str, split: str) -> list[Any]:
    """Structures of a fold's split."""
    source = {"src": str(fold_folder(folder, "metal", metal) / split)}
    settings = {"format": "est_ocp.data.OC20LmdbDataset", "task": "is2re"}
    dataset = create_dataset({"oc20": settings | {"splits": {split: source}}})
    return [dataset[i] for i in range(len(dataset))]


def batches_of(systems: list[Any]) -> list[Any]:
    """Batches in float64."""
    from fairchem.core.datasets.atomic_data import atomicdata_list_to_batch

    batches = []
    for start in range(0, len(systems), BATCH):
        batch = atomicdata_list_to_batch(systems[start : start + BATCH])
        batch.pos, batch.cell = batch.pos.double(), batch.cell.double()
        batches.append(batch)
    return batches


@torch.no_grad()
def errors(
    run: Path, metal: str, others: list[str], batches: list[Any]
) -> Iterator[dict[str, Any]]:
    """Yield the mean absolute error and the mean error, eV, with every embedding."""
    model = build(*read_trained(str(run))[:2], {})
    (task,) = read_checkpoint(run).tasks_config
    scale, shift = task["normalizer"]["rmsd"], task["normalizer"]["mean"]
    weight = model.backbone.atom_embedding.weight
    own = weight[atomic_numbers[metal]].clone()
    known = {name: weight[atomic_numbers[name]].clone() for name in others}
    embeddings = {UNTRAINED: own} | known
    embeddings |= {MEAN: torch.stack([*known.values()]).mean(0), ZERO: torch.zeros_like(own)}
    for name, embedding in embeddings.items():
        weight[atomic_numbers[metal]] = embedding
        found = torch.cat(
            [
                model(batch)["energy"]["energy"].reshape(-1) * scale + shift - batch.energy.view(-1)
                for batch in batches
            ]
        )
        yield {"embedding": name, "mae": float(found.abs().mean()), "bias": float(found.mean())}


def main(argv: list[str] | None = None) -> None:
    """Predict with every embedding."""
    arguments = parse(argv)
    folder, metal = arguments.folder, arguments.metal
    out = arguments.out or folder / "embeddings.csv"
    out.unlink(missing_ok=True)
    batches = batches_of(structures(folder, metal, "held_out"))
    trained = {
        int(z) for system in structures(folder, metal, "train") for z in system.atomic_numbers
    }
    others = [name for name in LATTICE if atomic_numbers[name] in trained]
    for model in arguments.models:
        run = folder / "runs" / Training(model, "metal", metal, arguments.seed).name
        for row in errors(run, metal, others, batches):
            print(f"{model}, {row['embedding']}: MAE {row['mae']:.3f} eV, bias {row['bias']:+.3f}")
            append(out, COLUMNS, [{"model": model, "held_out": metal} | row])


if __name__ == "__main__":
    main()
