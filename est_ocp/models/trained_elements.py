"""Which elements a model has met in training: the others' embeddings are still random numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import nn


class TrainedElements(nn.Module):
    """A record of the elements of training batches, kept with the weights as ``met``.

    Parameters
    ----------
    num_elements : int
        Atomic numbers are below this.

    Attributes
    ----------
    met : Tensor [num_elements], uint8
        1 for those met. All 0: nothing is known, as in checkpoints of before.
    """

    def __init__(self, num_elements: int) -> None:
        super().__init__()
        # No bool, which not every backend sends to other ranks.
        self.register_buffer("met", torch.zeros(num_elements, dtype=torch.uint8))
        self._looked_at: set[int] = set()
        self._given_up = False

    @torch.no_grad()
    def record(self, atomic_numbers: torch.Tensor) -> None:
        """Note the elements of a batch: atomic numbers [N], int64, below ``num_elements``."""
        if self._given_up:
            return
        self.met.index_fill_(0, atomic_numbers, 1)
        self._looked_at.clear()

    def give_up(self) -> None:
        """Know nothing for good, and leave no trace in state dictionaries.

        For trainings that go on from a checkpoint of before, whose elements nobody noted.
        """
        self._given_up = True
        self.met.zero_()
        self._non_persistent_buffers_set.add("met")

    def share(self) -> None:
        """Note those that other ranks have met; a collective operation."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.met, op=torch.distributed.ReduceOp.MAX)

    def first_warning(self, atomic_numbers: Iterable[int]) -> str | None:
        """As :meth:`warning`, once of each element; the device is asked only of new ones."""
        new = set(atomic_numbers) - self._looked_at
        self._looked_at |= new
        return self.warning(new) if new else None

    def warning(self, atomic_numbers: Iterable[int]) -> str | None:
        """What to tell of elements that training has not met.

        Parameters
        ----------
        atomic_numbers : iterable of int
            On the host.
        """
        met = self.met.tolist()
        strange = [z for z in sorted(set(atomic_numbers)) if z < len(met) and not met[z]]
        if not strange or not any(met):
            return None
        names = ", ".join(chemical_symbols[z] for z in strange)
        return (
            f"this model met no {names} in training: predictions for structures with it are "
            "arbitrary; leave them out, or go on training with structures that hold it"
        )

    @classmethod
    def all_in(cls, unit: Any) -> list[TrainedElements]:
        """Return those of a training unit's model and of its average, where it has them."""
        models = (getattr(unit, name, None) for name in ("model", "ema_model"))
        modules = (module for model in models if model is not None for module in model.modules())
        return [module for module in modules if isinstance(module, cls)]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if not self._given_up:
            # Checkpoints of before know nothing.
            state_dict.setdefault(f"{prefix}met", torch.zeros_like(self.met))
        self._looked_at.clear()
        super()._load_from_state_dict(state_dict, prefix, *rest)
