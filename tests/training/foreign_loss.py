"""A loss of another package than est-ocp and fairchem, for the tests."""

from __future__ import annotations

from fairchem.core.modules.loss import MAELoss


class ForeignLoss(MAELoss):
    """The mean absolute error under a name that checkpoints may not use."""
