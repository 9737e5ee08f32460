"""How fast batches come from an OC20 LMDB, by the number of loader processes, as JSON lines.

    python benchmarks/loading.py --workers 1 2 4 --csv

Writes random slabs of OC20's sizes into a temporary LMDB and reads them in random order through
the loader that training uses. "graphs" says whether the loader's processes also built the radius
graphs of the config's model (`runner.loader_graphs`).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import hydra
import numpy as np
from hydra import compose, initialize_config_module
from measuring.machine import facts
from measuring.records import CsvFile
from slabs import random_slab

from est_ocp.data import (
    FixedSizeBatchSampler,
    collate,
    create_dataset,
    get_dataloader,
    release_workers,
    write_oc20_lmdb,
)
from est_ocp.models.batch_graph import GraphCollater
from est_ocp.models.graph import RadiusGraph
from est_ocp.models.settings import GraphSettings, from_mapping


def write(folder: Path, frames: int) -> float:
    """Write random frames; returns their mean number of atoms."""
    rng = np.random.default_rng(0)
    records, atoms = [], 0
    for number in range(frames):
        data = random_slab(rng)
        atoms += int(data.natoms)
        record = {key: data[key].numpy() for key in ("pos", "atomic_numbers", "tags", "fixed")}
        record |= {"cell": data.cell.numpy(), "energy": float(data.energy), "sid": number, "fid": 0}
        records.append(record | {"forces": data.forces.numpy()})
    write_oc20_lmdb(folder, records)
    return atoms / frames


#: Columns of the CSV file.
COLUMNS = (
    "cores", "batch", "workers", "graphs", "frames_s", "atoms_s", "card", "torch", "triton",
    "fairchem", "date",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every number of processes, without and with graphs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--model", default="est_s2ef_8layer", help="config of the group `model`")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder")
    parser.add_argument("--csv", action="store_true", help="write OUT/speed_loading.csv too")
    arguments = parser.parse_args(argv)
    file = CsvFile(arguments.out / "speed_loading.csv", COLUMNS) if arguments.csv else None
    # Without a look at the GPU: processes are forked from this one.
    machine = facts("cpu")
    with initialize_config_module("est_ocp.configs", version_base=None):
        cfg = compose("train_s2ef", [f"model={arguments.model}", "cluster=local_cpu"])
    tasks = [hydra.utils.instantiate(task) for task in cfg.task_list]
    settings = from_mapping(GraphSettings, cfg.model.backbone.graph, "model.backbone.graph")
    with tempfile.TemporaryDirectory() as folder:
        atoms = write(Path(folder) / "train", arguments.frames)
        split = {"train": {"src": f"{folder}/train"}}
        dataset = create_dataset({"oc20": {"format": "est_oc20_lmdb", "splits": split}})
        for graphs in (False, True):
            for workers in arguments.workers:
                if graphs and not workers:
                    continue
                made = collate(tasks)
                loader = get_dataloader(
                    dataset,
                    functools.partial(FixedSizeBatchSampler, batch_size=arguments.batch),
                    GraphCollater(made, RadiusGraph(settings)) if graphs else made,
                    workers,
                )
                times = []
                for _ in range(3):  # the first pass starts the processes and opens the file
                    start = time.perf_counter()
                    count = sum(len(batch.natoms) for batch in loader)
                    times.append(time.perf_counter() - start)
                release_workers(loader)
                rate = count / min(times[1:])
                row = {"cores": len(os.sched_getaffinity(0)), "batch": arguments.batch}
                row |= {"workers": workers, "graphs": graphs, "frames_s": round(rate, 1)}
                row["atoms_s"] = round(rate * atoms)
                print(json.dumps(row), flush=True)
                print(f"{workers} workers, graphs {graphs}: done", file=sys.stderr, flush=True)
                if file is not None:
                    file.add(row | machine)


if __name__ == "__main__":
    main()
