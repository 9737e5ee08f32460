"""Data loaders and datasets of several splits."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Mapping
from typing import Any

import torch
from fairchem.core.common import distutils, gp_utils
from fairchem.core.datasets.mt_concat_dataset import ConcatDataset, create_concat_dataset
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Dataset

from est_ocp.data.noisy_nodes import EpochKeys, NoisyDataset, NoisyNodes
from est_ocp.errors import ESTError


def get_dataloader(
    dataset: Dataset,
    batch_sampler_fn: Callable[..., Any],
    collate_fn: Callable[..., Any],
    num_workers: int = 0,
    prefetch_factor: int | None = None,
    persistent_workers: bool = True,
    multiprocessing_context: str | None = "fork",
    pin_memory: bool | None = None,
    noise: NoisyNodes | None = None,
) -> DataLoader:
    """Build a loader for this data-parallel rank.

    Workers live through epochs and evaluations, and are forked, so that they need not import
    everything again. Forking is safe with :class:`~est_ocp.data.OC20LmdbDataset`: it has no file
    open until its first read in each process.

    Parameters
    ----------
    dataset : Dataset
        Usually from :func:`create_dataset`.
    batch_sampler_fn : callable
        Called with ``dataset``, ``num_replicas`` and ``rank``.
    collate_fn : callable
        See :func:`est_ocp.data.collate`.
    num_workers : int
        Loader processes; 0 reads in this process.
    prefetch_factor : int, optional
        Batches each worker prepares ahead (torch's default: 2).
    persistent_workers : bool
        Keep workers between epochs.
    multiprocessing_context : str, optional
        How workers start. None, or a way that this system lacks: the system's default.
    pin_memory : bool, optional
        By default, if a CUDA device is there.
    noise : NoisyNodes, optional
        Noise for the structures of a training loader.
    """
    if gp_utils.initialized():
        num_replicas, rank = gp_utils.get_dp_world_size(), gp_utils.get_dp_rank()
    else:
        num_replicas, rank = distutils.get_world_size(), distutils.get_rank()
    if multiprocessing_context not in multiprocessing.get_all_start_methods():
        multiprocessing_context = None
    workers = num_workers > 0
    batch_sampler = batch_sampler_fn(dataset=dataset, num_replicas=num_replicas, rank=rank)
    if noise is not None:
        dataset, batch_sampler = NoisyDataset(dataset, noise), EpochKeys(batch_sampler)
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=collate_fn,
        num_workers=num_workers,
        persistent_workers=persistent_workers and workers,
        prefetch_factor=prefetch_factor if workers else None,
        multiprocessing_context=multiprocessing_context if workers else None,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        # Each iterator draws a seed; from the global generator, that would shift the dropout of a
        # resumed training, whose iterators begin elsewhere.
        generator=torch.Generator(),
        worker_init_fn=spare_inherited_objects,
    )


def spare_inherited_objects(worker: int) -> None:
    """Keep a forked worker's garbage collector away from what it inherited.

    Where CUDA objects of an earlier model are among the garbage, finalising them in a forked
    process aborts it. Not touching inherited objects also leaves their memory shared.
    """
    gc.freeze()


def release_workers(loader: DataLoader) -> None:
    """End a loader's persistent worker processes.

    PyTorch ends them only when the loader is garbage-collected; at the interpreter's exit it waits
    five seconds for each that still lives.
    """
    iterator, loader._iterator = getattr(loader, "_iterator", None), None
    if iterator is not None:
        iterator._shutdown_workers()


def limit_elements(dataset: Dataset, max_num_elements: int) -> None:
    """Let a dataset, or those it joins, refuse elements that a model has no embedding of.

    On a GPU an embedding of a number beyond its table ends the process without a name; records are
    refused by name when they are read.

    Parameters
    ----------
    dataset : Dataset
        A loader's dataset. Parts without ``max_num_elements`` are left as they are.
    max_num_elements : int
        The model's; atomic numbers must be below it.
    """
    for part in (*getattr(dataset, "datasets", ()), getattr(dataset, "dataset", None)):
        if isinstance(part, Dataset):
            limit_elements(part, max_num_elements)
    if hasattr(dataset, "max_num_elements"):
        dataset.max_num_elements = min(dataset.max_num_elements, max_num_elements)


def create_dataset(dataset_configs: Mapping[str, Any]) -> ConcatDataset:
    """Join the splits of dataset configurations, every sample exactly once.

    fairchem's temperature sampling multiplies lengths by ratios that may round to just below one,
    which drops a sample; here each ratio is exactly one.

    Parameters
    ----------
    dataset_configs : mapping
        Dataset name to its configuration with ``splits``, as fairchem's
        ``create_concat_dataset`` takes.

    Returns
    -------
    ConcatDataset
        Its samples carry ``dataset_name`` "{dataset}.{split}".

    Raises
    ------
    ConfigError, DataError
        As the datasets themselves raise them.
    """
    config = OmegaConf.create(dict(dataset_configs))
    names = [f"{dataset}.{split}" for dataset, entry in config.items() for split in entry.splits]
    sampling = {"type": "explicit", "ratios": dict.fromkeys(names, 1.0)}
    try:
        return create_concat_dataset(config, {"sampling": sampling})
    except ValueError as error:
        # fairchem wraps every ValueError in a plain one, which hides the kind of ours.
        if isinstance(error.__cause__, ESTError):
            raise error.__cause__ from None
        raise
