"""Batch samplers: a fixed number of systems, or a cap on atoms; every system is visited.

Both follow fairchem's protocol: built by ``(dataset=, num_replicas=, rank=)``, resumed by
``set_epoch_and_start_iteration``. All ranks derive the same global order from the seed and the
epoch, so no communication is needed. Ranks need equally many batches; where the split does not
come out even, the last batches repeat systems from the start of the order. Repeats are recognised
by ``sample_id``, which is unique in a split (see :func:`est_ocp.data.drop_repeats`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from est_ocp.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def sizes_of(dataset: Any, indices: np.ndarray) -> np.ndarray:
    """Return the numbers of atoms of samples from the dataset's metadata, int64.

    Raises
    ------
    DataError
        If the dataset has no ``natoms`` metadata.
    """
    if not dataset.metadata_hasattr("natoms"):
        raise DataError(
            "the dataset has no 'natoms' metadata, which balancing by atoms needs; "
            "put a metadata.npz beside it or use FixedSizeBatchSampler with balance: false"
        )
    return np.asarray(dataset.get_metadata("natoms", indices.tolist())).reshape(-1)


class _EpochSampler(Sampler[list[int]]):
    """Epoch, position and rank, common to both samplers."""

    def __init__(self, dataset: Any, num_replicas: int, rank: int, seed: int, shuffle: bool):
        if not 0 <= rank < num_replicas:
            raise ConfigError(f"rank {rank} is not below the number of ranks {num_replicas}")
        if len(dataset) == 0:
            raise DataError("the dataset has no samples; check src, max_atoms and subset_to")
        self.dataset = dataset
        self.num_replicas, self.rank = num_replicas, rank
        self.seed, self.shuffle = seed, shuffle
        self.epoch, self.start_iteration = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order and start at its beginning."""
        self.set_epoch_and_start_iteration(epoch, 0)

    def set_epoch_and_start_iteration(self, epoch: int, start_iteration: int) -> None:
        """Choose the epoch's order and skip the batches that a resumed run has done.

        Raises
        ------
        ConfigError
            If the epoch has fewer batches than are to be skipped.
        """
        if not 0 <= start_iteration <= len(self):
            raise ConfigError(
                f"cannot resume at batch {start_iteration} of an epoch of {len(self)} batches; "
                "the dataset, the batch size or the number of ranks differs from the saved run's"
            )
        self.epoch, self.start_iteration = epoch, start_iteration

    def _order(self, count: int) -> np.ndarray:
        """Return the epoch's order of ``count`` items, the same on every rank."""
        order = np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        return order


class FixedSizeBatchSampler(_EpochSampler):
    """Batches of ``batch_size`` systems on each rank.

    Parameters
    ----------
    dataset : Dataset
        With fairchem's ``metadata_hasattr`` and ``get_metadata`` if ``balance``.
    batch_size : int
        Systems a rank; the last batch may be smaller.
    num_replicas, rank : int
        Data-parallel ranks and this one.
    seed : int
        Seed of the order.
    shuffle : bool
        A new order each epoch; False keeps the dataset's.
    drop_last : bool
        Leave out the last batch if it is not full (training only).
    balance : bool
        Share each global batch out so that ranks get about equally many atoms.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        balance: bool = True,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, seed, shuffle)
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        self.batch_size, self.drop_last = batch_size, drop_last
        self.balance = balance and num_replicas > 1
        if len(self) == 0:
            raise ConfigError(
                f"{len(dataset)} samples do not fill one batch of {batch_size} on "
                f"{num_replicas} ranks; set drop_last: false or a smaller batch_size"
            )

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size * self.num_replicas)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order(len(self.dataset))
        stride = self.batch_size * self.num_replicas
        for batch in range(self.start_iteration, len(self)):
            chosen = order[batch * stride : (batch + 1) * stride]
            lacking = -len(chosen) % self.num_replicas
            if lacking:
                chosen = np.concatenate([chosen, order[np.arange(lacking) % len(order)]])
            yield chosen[self._share(chosen)].tolist()

    def _share(self, chosen: np.ndarray) -> np.ndarray:
        """Return the positions in the global batch that are this rank's, in ascending order."""
        position = np.arange(len(chosen))
        if not self.balance:
            return position[self.rank :: self.num_replicas]
        # Deal from large to small, there and back, so that every rank gets equally many systems.
        turn, seat = np.divmod(position, self.num_replicas)
        owner = np.where(turn % 2 == 0, seat, self.num_replicas - 1 - seat)
        by_size = np.argsort(-sizes_of(self.dataset, chosen), kind="stable")
        return np.sort(by_size[owner == self.rank])


class EvaluationBatchSampler(FixedSizeBatchSampler):
    """Batches in which the splits of a joined dataset come in turn, in one fixed random order.

    A part of an evaluation then sees every split in proportion to its size, and always the same
    structures. Parameters as for :class:`FixedSizeBatchSampler`; the epoch has no effect.
    """

    def _order(self, count: int) -> np.ndarray:
        ends = np.asarray(getattr(self.dataset, "cumulative_sizes", [count]))
        sizes = np.diff(ends, prepend=0)
        rng = np.random.default_rng(self.seed)
        # The structure drawn k-th of a split of n stands at the fraction (k + 1/2) / n.
        where = np.concatenate([(rng.permutation(size) + 0.5) / size for size in sizes])
        return np.argsort(where, kind="stable")

    def unseen_splits(self, batches: int) -> list[str]:
        """Names of the splits of which the first ``batches`` batches hold nothing."""
        seen = self._order(len(self.dataset))[: batches * self.batch_size * self.num_replicas]
        numbers = np.searchsorted(self.dataset.cumulative_sizes, seen, side="right")
        names = self.dataset.dataset_names
        return [name for number, name in enumerate(names) if number not in numbers]


class MaxAtomsBatchSampler(_EpochSampler):
    """Batches of at most ``max_atoms`` atoms on each rank.

    Systems are grouped once, so that the number of batches is the same in every epoch; the order
    of the batches changes. A system above ``max_atoms`` is never dropped silently.

    Parameters
    ----------
    dataset : Dataset
        With fairchem's ``metadata_hasattr`` and ``get_metadata``.
    max_atoms : int
        Largest sum of atoms in a batch.
    num_replicas, rank : int
        Data-parallel ranks and this one.
    seed : int
        Seed of the grouping and of the order.
    shuffle : bool
        Group systems at random and take the groups in a new order each epoch.
    drop_last : bool
        Leave out batches that would have to be repeated to fill up the ranks (training only).
    oversize : {"single", "error"}
        A system above ``max_atoms``: alone in a batch, or an error.
    """

    def __init__(
        self,
        dataset: Any,
        max_atoms: int,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        oversize: str = "single",
    ) -> None:
        super().__init__(dataset, num_replicas, rank, seed, shuffle)
        if max_atoms < 1:
            raise ConfigError(f"max_atoms must be at least 1, not {max_atoms}")
        if oversize not in ("single", "error"):
            raise ConfigError(f"oversize must be 'single' or 'error', not '{oversize}'")
        self.max_atoms, self.drop_last = max_atoms, drop_last
        self._systems = self._order(len(dataset))
        sizes = sizes_of(dataset, self._systems)
        self._refuse_or_report(sizes, oversize)
        self._bounds = group_by_sum(sizes, max_atoms)
        if len(self) == 0:
            raise ConfigError(
                f"{len(self._bounds) - 1} batches do not reach {num_replicas} ranks; "
                "set drop_last: false or a smaller max_atoms"
            )

    def _refuse_or_report(self, sizes: np.ndarray, oversize: str) -> None:
        above = np.flatnonzero(sizes > self.max_atoms)
        if len(above) == 0:
            return
        found = f"{len(above)} systems have more than max_atoms = {self.max_atoms} atoms (up to "
        found += f"{sizes.max()}; the first is sample {self._systems[above[0]]})"
        if oversize == "error":
            raise DataError(f"{found}; raise max_atoms or set oversize: single")
        logger.warning("%s; each is put alone in a batch", found)

    def __len__(self) -> int:
        whole, rest = divmod(len(self._bounds) - 1, self.num_replicas)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order(len(self._bounds) - 1)
        for turn in range(self.start_iteration, len(self)):
            group = order[(turn * self.num_replicas + self.rank) % len(order)]
            yield self._systems[self._bounds[group] : self._bounds[group + 1]].tolist()


def group_by_sum(sizes: np.ndarray, limit: int) -> np.ndarray:
    """Cut a sequence into consecutive groups whose sums do not exceed ``limit``.

    An item above the limit makes a group of its own.

    Parameters
    ----------
    sizes : ndarray [n]
        Positive whole numbers.
    limit : int
        Largest sum of a group.

    Returns
    -------
    ndarray [groups + 1]
        Group g is ``sizes[bounds[g]:bounds[g + 1]]``.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    bounds = [0]
    while bounds[-1] < len(sizes):
        start = bounds[-1]
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + limit, side="right"))
        bounds.append(max(stop, start + 1))
    return np.array(bounds)
