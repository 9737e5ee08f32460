"""Finite symmetry groups under which designs are searched.

Points that come in orbits of a group integrate exactly every harmonic that has no part invariant
under the group, for free: the antipodal pair kills all odd degrees, the rotations of the
tetrahedron leave about one harmonic in twelve. Fewer conditions remain for each free point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SymmetryGroup:
    """A finite subgroup of O(3) and its isolated special orbits.

    Attributes
    ----------
    name : str
        For messages.
    elements : Tensor
        Matrices ``[G, 3, 3]``, float64, the identity first.
    special_orbits : tuple of Tensor
        Orbits of fewer than G points that have no freedom, each ``[k, 3]``.
    free_rotations : int
        Dimension of the rotations that commute with the group, which move no integral.
    """

    name: str
    elements: Tensor
    special_orbits: tuple[Tensor, ...]
    free_rotations: int

    def split(self, num_points: int) -> tuple[int, Tensor] | None:
        """Write a number of points as generic orbits plus special ones.

        Parameters
        ----------
        num_points : int
            S.

        Returns
        -------
        tuple or None
            Number of generic orbits (as many as possible, at least one) and the special points
            ``[k, 3]``; None if S is no such sum.
        """
        order = len(self.elements)
        for count in range(len(self.special_orbits) + 1):
            for chosen in combinations(self.special_orbits, count):
                rest = num_points - sum(len(orbit) for orbit in chosen)
                if rest >= order and rest % order == 0:
                    none = torch.empty(0, 3, dtype=torch.float64, device="cpu")
                    return rest // order, torch.cat([none, *chosen])
        return None

    def num_invariants(self, degree: int) -> int:
        """Number of independent harmonics of a degree that the group leaves unchanged."""
        trace = self.elements.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
        parity = torch.linalg.det(self.elements).round()
        angle = torch.acos(((parity * trace - 1) / 2).clamp(-1, 1))
        order = torch.arange(1, degree + 1, dtype=torch.float64, device="cpu")
        character = 1 + 2 * torch.cos(angle[:, None] * order).sum(dim=-1)
        return round(float((parity**degree * character).mean()))


def symmetry_groups() -> list[SymmetryGroup]:
    """The groups tried: none, inversion, rotations of the tetrahedron and of the cube."""
    identity = torch.eye(3, dtype=torch.float64, device="cpu")
    cycle = identity.roll(1, dims=0)
    half_turns = [torch.diag(_vector(a, b, a * b)) for a in (1, -1) for b in (1, -1)]
    turn = torch.stack([_vector(0, -1, 0), _vector(1, 0, 0), _vector(0, 0, 1)])
    powers = [identity, cycle, cycle @ cycle]
    tetrahedral = torch.stack([half @ power for half in half_turns for power in powers])
    octahedral = torch.cat([tetrahedral, tetrahedral @ turn])

    axes = torch.cat([identity, -identity])
    corners = torch.stack([half @ _vector(1, 1, 1) for half in half_turns]) / math.sqrt(3)
    cube = torch.cat([corners, -corners])
    pairs = [(a, b) for a, b in combinations(axes, 2) if not torch.equal(a, -b)]
    edges = torch.stack([a + b for a, b in pairs]) / math.sqrt(2)
    return [
        SymmetryGroup("plain", identity[None], (), 3),
        SymmetryGroup("antipodal", torch.stack([identity, -identity]), (), 3),
        SymmetryGroup("tetrahedral", tetrahedral, (axes, corners, -corners), 0),
        SymmetryGroup("octahedral", octahedral, (axes, cube, edges), 0),
    ]


def _vector(*components: float) -> Tensor:
    return torch.tensor(components, dtype=torch.float64, device="cpu")
