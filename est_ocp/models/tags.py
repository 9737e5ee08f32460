"""OC20's tags of atoms."""

from __future__ import annotations

import torch

from est_ocp.errors import DataError

#: OC20's tags: 0 below the surface, 1 surface, 2 adsorbate.
NUM_TAGS = 3


def check_tags(tags: torch.Tensor) -> None:
    """Refuse tags other than OC20's.

    Raises
    ------
    DataError
        Naming the tags.
    """
    wrong = (tags < 0) | (tags >= NUM_TAGS)
    if wrong.any():
        found = sorted(set(tags[wrong].tolist()))
        raise DataError(
            f"tags {found} are not OC20's; set 0 below the surface, 1 on the surface and 2 for "
            "the adsorbate (ASE's surface builders number the layers instead)"
        )
