"""Learning-rate schedule."""

from __future__ import annotations

import torch
from fairchem.core.units.mlip_unit.mlip_unit import _get_consine_lr_scheduler

from est_ocp.errors import ConfigError


def cosine_schedule(
    warmup_factor: float,
    warmup_epochs: float,
    lr_min_factor: float,
    n_iters_per_epoch: int,
    optimizer: torch.optim.Optimizer,
    epochs: int | None = None,
    steps: int | None = None,
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up, then a cosine; fairchem's schedule with ``steps`` going before ``epochs``.

    Parameters
    ----------
    warmup_factor : float
        Learning rate at step 0, as a fraction of the peak.
    warmup_epochs : float
        Length of the warm-up in epochs; may be a fraction.
    lr_min_factor : float
        Learning rate at the end, as a fraction of the peak.
    n_iters_per_epoch : int
        Steps in an epoch.
    optimizer : Optimizer
    epochs, steps : int, optional
        Length of the schedule; ``steps`` is used where both are given.

    Raises
    ------
    ConfigError
        If neither length is given.
    """
    if epochs is None and steps is None:
        raise ConfigError("the schedule needs a length: set `epochs` or `steps`")
    return _get_consine_lr_scheduler(
        warmup_factor=warmup_factor,
        warmup_epochs=warmup_epochs,
        lr_min_factor=lr_min_factor,
        n_iters_per_epoch=n_iters_per_epoch,
        optimizer=optimizer,
        epochs=None if steps is not None else epochs,
        steps=steps,
    )
