"""Noisy nodes: train from structures between the initial and the relaxed one, with noise.

Godwin et al., "Simple GNN regularisation for 3D molecular property prediction and beyond" (arXiv
2106.07971), in the form that Equiformer uses on OC20 (arXiv 2206.11990 and its published code).
The noise of a structure depends on the seed, the epoch and the structure's number alone. The epoch
travels with each index from the sampler to the worker that reads the structure, so that a resumed
run, another number of workers or of ranks, and batches read ahead all get the same noise.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from fairchem.core.datasets.atomic_data import AtomicData
from torch.utils.data import Dataset, Sampler

from est_ocp.errors import ConfigError, DataError


class NoisyNodes:
    """Callable that moves the free atoms of a structure towards their relaxed positions.

    A structure that is chosen (with ``probability``) gets for each free atom
    ``pos + u (pos_relaxed - pos) + std n``, with ``u`` uniform in [0, 1) and ``n`` normal in each
    component. Atoms that are fixed stay. The targets remain the relaxed ones.

    Parameters
    ----------
    probability : float
        Part of the structures that are moved; the others stay as they are (Equiformer: 0.5).
    std : float
        Standard deviation of the noise in each component, Angstrom (Equiformer: 0.3).
    seed : int
        Of the whole run; not negative.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    def __init__(self, probability: float = 0.5, std: float = 0.3, seed: int = 0) -> None:
        if not 0.0 <= probability <= 1.0:
            raise ConfigError(f"noise: probability must lie in 0..1, not {probability}")
        if std < 0.0:
            raise ConfigError(f"noise: std must not be negative (Angstrom), it is {std}")
        if seed < 0:
            raise ConfigError(f"noise: seed must not be negative, it is {seed}; set job.seed")
        self.probability, self.std, self.seed = probability, std, seed

    def __call__(self, system: AtomicData, index: int, epoch: int) -> AtomicData:
        """Return the structure with its noise of this epoch; the given one is not altered.

        Parameters
        ----------
        system : AtomicData
            With ``pos_relaxed`` [N, 3].
        index : int
            Number of the structure in the training set.
        epoch : int

        Raises
        ------
        DataError
            If the structure has no relaxed positions.
        """
        if "pos_relaxed" not in system:
            raise DataError(
                f"sample {system.sid[0]} has no 'pos_relaxed', which noisy nodes move atoms "
                "towards; use labelled IS2RE files, or set runner.train_dataloader.noise=null"
            )
        rng = np.random.default_rng([self.seed, epoch, index])
        if rng.random() >= self.probability:
            return system
        pos = system.pos
        fraction = torch.from_numpy(rng.random((len(pos), 1))).to(pos)
        noise = torch.from_numpy(rng.normal(scale=self.std, size=(len(pos), 3))).to(pos)
        moved = pos + fraction * (system.pos_relaxed - pos) + noise
        # A shallow copy: the system may be cached by its dataset.
        result = copy.copy(system)
        result.pos = torch.where((system.fixed == 0)[:, None], moved, pos)
        return result


class NoisyDataset(Dataset):
    """A dataset whose samples are read by ``(index, epoch)`` and get that epoch's noise.

    Parameters
    ----------
    dataset : Dataset
    noise : NoisyNodes
    """

    def __init__(self, dataset: Dataset, noise: NoisyNodes) -> None:
        self.dataset, self.noise = dataset, noise

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> AtomicData:
        index, epoch = key
        return self.noise(self.dataset[index], index, epoch)


class EpochKeys(Sampler[list[tuple[int, int]]]):
    """A batch sampler that gives ``(index, epoch)`` for each index of another one.

    Parameters
    ----------
    sampler : Sampler
        With ``epoch`` and ``set_epoch_and_start_iteration``, as those of this package.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.sampler.epoch
        for batch in self.sampler:
            yield [(index, epoch) for index in batch]

    def set_epoch_and_start_iteration(self, epoch: int, start_iteration: int) -> None:
        """As the sampler within."""
        self.sampler.set_epoch_and_start_iteration(epoch, start_iteration)
