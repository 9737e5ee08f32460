"""Molecules a second that a loader of QM9 delivers, by the number of its processes.

    python benchmarks/qm9_loading.py --workers 0 1 2

Without --data it writes the embedded molecules into a temporary folder.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time

import torch
from molecules import TASK, data_config

from est_ocp.data import (
    FixedSizeBatchSampler,
    collate,
    collate_molecules,
    create_dataset,
    create_qm9_dataset,
    get_dataloader,
    release_workers,
    write_qm9,
)


def rate(dataset, collate_fn, workers: int, batch_size: int, seconds: float) -> float:
    """Return molecules a second, from the first batch on."""
    sampler = functools.partial(FixedSizeBatchSampler, batch_size=batch_size)
    loader = get_dataloader(dataset, sampler, collate_fn, num_workers=workers)
    count, started = 0, None
    while started is None or time.perf_counter() - started < seconds:
        for batch in loader:
            if started is None:
                started = time.perf_counter()
                continue
            count += batch.natoms.numel()
            if time.perf_counter() - started > seconds:
                break
    elapsed = time.perf_counter() - started
    release_workers(loader)
    return count / elapsed


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder that `est-ocp data qm9` wrote")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or folder
        if options.data is None:
            write_qm9(folder, "subset")
        config = data_config(data)
        started = time.perf_counter()
        whole = create_qm9_dataset(config)
        print(f"{len(whole)} molecules opened in {time.perf_counter() - started:.2f} s")
        ways = {
            "whole batches": (whole, collate_molecules([TASK])),
            "one by one": (create_dataset(config), collate([TASK])),
        }
        print(f"{'':<16}" + "".join(f"{n:>4} workers" for n in options.workers))
        for name, (dataset, collate_fn) in ways.items():
            rates = [
                rate(dataset, collate_fn, n, options.batch_size, options.seconds)
                for n in options.workers
            ]
            print(f"{name:<16}" + "".join(f"{value:>12.0f}" for value in rates))


if __name__ == "__main__":
    main()
