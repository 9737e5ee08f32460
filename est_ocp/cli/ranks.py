"""How many processes predict on this machine; results do not depend on it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from est_ocp.errors import ConfigError

logger = logging.getLogger(__name__)
_KEY = "job.scheduler.ranks_per_node"


def fit_ranks(config: Any, overrides: Sequence[str]) -> None:
    """Fit a resolved config's number of local ranks to this machine's GPUs or cores.

    A training config's number is only lowered; one that an override names is taken as it is.

    Parameters
    ----------
    config : DictConfig
        Changed in place.
    overrides : sequence of str
        Of the command line.

    Raises
    ------
    ConfigError
        If the config wants a GPU and there is none, or an override wants more than there are.
    """
    import torch

    wanted = int(config.job.scheduler.ranks_per_node)
    named = any(word.lstrip("+").startswith(f"{_KEY}=") for word in overrides)
    if "CUDA" in str(config.job.device_type).upper():
        have, what = torch.cuda.device_count() if torch.cuda.is_available() else 0, "GPU"
        if have == 0:
            raise ConfigError(
                "the config's job is for GPUs, and there is none here that torch can use; "
                "add cluster=local_cpu, or job.device_type=CPU for a run's own config"
            )
        if named and wanted > have:
            raise ConfigError(
                f"{wanted} ranks need a GPU each, and there are {have} here; "
                f"take {_KEY}={have} or fewer"
            )
    else:
        have, what = _cores(), "core"
    if not named and wanted > have:
        logger.warning("%d of the config's %d ranks: one for each %s", have, wanted, what)
        config.job.scheduler.ranks_per_node = have


def _cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
