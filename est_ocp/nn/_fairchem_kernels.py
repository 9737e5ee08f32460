"""Wigner matrices from unit quaternions by fairchem's kernels.

The only module below ``est_ocp.models`` that imports fairchem. Its quaternion kernels evaluate
polynomials of the quaternion, so that values and gradients stay finite for every direction, the
poles of the Euler angles included.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

try:
    from fairchem.core.models.uma.common.quaternion.quaternion_wigner_utils import (
        create_wigner_data_module,
    )
    from fairchem.core.models.uma.common.quaternion.wigner_d_hybrid import (
        wigner_d_from_quaternion_hybrid,
    )
except ImportError as error:
    raise ImportError(
        "edge frames use the quaternion Wigner kernels of fairchem-core==2.24.0; install it with "
        f"`pip install fairchem-core==2.24.0` ({error})"
    ) from error

#: Degrees from here on use polynomial tables, lower ones have kernels of their own.
_FIRST_TABULATED_DEGREE = 5


class QuaternionWigner(nn.Module):
    """Wigner matrices of unit quaternions ``(w, x, y, z)`` up to a degree.

    The coefficient tables stay in float64 whatever type the model has: the kernels cast them to
    the type of the quaternions.

    Parameters
    ----------
    lmax : int
        Largest degree.
    """

    def __init__(self, lmax: int) -> None:
        super().__init__()
        self.lmax = lmax
        self.tables = create_wigner_data_module(lmax=lmax, lmin=_FIRST_TABULATED_DEGREE)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        old = self.tables.custom_kernels.C_l2
        device = fn(torch.empty(0, dtype=torch.float32, device=old.device)).device
        return super()._apply(lambda table: table.to(device), recurse)

    def forward(self, quaternion: torch.Tensor) -> torch.Tensor:
        """Map unit quaternions [E, 4] to block-diagonal matrices [E, (lmax+1)**2, (lmax+1)**2]."""
        return wigner_d_from_quaternion_hybrid(
            quaternion,
            self.lmax,
            coeffs=self.tables.coeffs,
            U_blocks=self.tables.U_blocks,
            custom_kernels=self.tables.custom_kernels,
        )
