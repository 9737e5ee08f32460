"""Processor threads of several ranks on one machine."""

from __future__ import annotations

import os

import torch


def share_cores() -> None:
    """Give each rank of this machine its share of the cores, unless OMP_NUM_THREADS is set.

    Otherwise every rank would use as many threads as there are cores, which slows training on
    a processor down several times. Ranks that use a GPU profit too: their threads only wait.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if ranks > 1 and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, cores // ranks))
