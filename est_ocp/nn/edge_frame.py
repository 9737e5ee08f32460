"""Rotations of steerable features into the frames of edges."""

from __future__ import annotations

import torch
from torch import nn

from est_ocp.nn.coefficient_index import check_degrees, order_major_index


class EdgeFrame(nn.Module):
    """Wigner matrices that turn each edge onto +y, truncated to orders ``|m| <= mmax``.

    In the frame of an edge that points along the polar axis a rotation about the edge only mixes
    ``+m`` with ``-m``, so an equivariant convolution becomes a set of small linear maps, one an
    order (eSCN, arXiv 2302.03655). The rows of the result are order-major
    (``est_ocp.nn.coefficient_index``): multiplying features by the matrix rotates, truncates and
    sorts them at once, and its transpose undoes all three, up to the factors of
    :func:`est_ocp.nn.coefficient_index.truncation_rescale`.

    The remaining angle about the edge follows from the edge alone: the edge takes the shortest
    way onto +y, and edges within 36 degrees of -y, where that way is not unique, turn by 180
    degrees about x first. Training and evaluation agree, and values and gradients are finite
    everywhere. The angle has to jump somewhere (no frame is continuous on the whole sphere); it
    does so on a circle about -y that holds no direction of high symmetry, so that rounding
    cannot flip the frames of an ideal slab. Only the S2 activation's aliasing depends on the
    angle at all. Edges shorter than 1e-8 count as pointing at +y and pass no gradient. Frames
    are computed in at least float32, also under autocast.

    Parameters
    ----------
    lmax : int
        Largest degree.
    mmax : int
        Largest order kept.
    """

    def __init__(self, lmax: int, mmax: int) -> None:
        super().__init__()
        # Imported here so that blocks without frames work where fairchem is not installed.
        from est_ocp.nn._fairchem_kernels import QuaternionWigner

        check_degrees(lmax, mmax)
        self.lmax = lmax
        self.mmax = mmax
        self.quaternion_wigner = QuaternionWigner(lmax)
        self.register_buffer("rows", order_major_index(lmax, mmax), persistent=False)

    def forward(self, edge_vec: torch.Tensor, roll: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the matrices of edges.

        Parameters
        ----------
        edge_vec : Tensor [E, 3]
            Edge vectors, Angstrom.
        roll : Tensor [E], optional
            Extra rotation about each edge, radians. None (no extra rotation) is what models use.

        Returns
        -------
        Tensor [E, R, (lmax+1)**2]
            float32 or float64; R order-major rows.
        """
        with torch.autocast(edge_vec.device.type, enabled=False):
            edge_vec = edge_vec.to(torch.promote_types(edge_vec.dtype, torch.float32))
            quaternion = _direction_to_quaternion(_unit_vectors(edge_vec))
            if roll is not None:
                quaternion = _roll(quaternion, roll)
            return self._rows_of(quaternion)

    def from_rotation(self, rotation: torch.Tensor) -> torch.Tensor:
        """Compute the matrices of given rotations [E, 3, 3], each turning its edge onto +y."""
        with torch.autocast(rotation.device.type, enabled=False):
            return self._rows_of(_rotation_to_quaternion(rotation))

    def _rows_of(self, quaternion: torch.Tensor) -> torch.Tensor:
        return self.quaternion_wigner(quaternion).index_select(1, self.rows)

    def extra_repr(self) -> str:
        return f"lmax={self.lmax}, mmax={self.mmax}"


def _unit_vectors(vectors: torch.Tensor, shortest: float = 1e-8) -> torch.Tensor:
    """Normalise [E, 3]; vectors shorter than ``shortest`` become +y."""
    # Scaling by the largest component first keeps the squares from underflowing.
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True)
    usable = largest > shortest
    axis = torch.zeros_like(vectors)
    axis[:, 1] = 1.0
    scaled = torch.where(usable, vectors / largest.clamp(min=shortest), axis)
    return scaled / scaled.square().sum(dim=-1, keepdim=True).sqrt()


#: Edges whose unit vector has y below this use the second chart.
_CHART_BOUNDARY = -0.8137


def _direction_to_quaternion(direction: torch.Tensor) -> torch.Tensor:
    """Unit quaternions (w, x, y, z) [E, 4] of rotations that turn unit vectors [E, 3] onto +y."""
    x, y, z = direction.unbind(dim=1)
    near_pole = y < _CHART_BOUNDARY
    # The second chart first turns by pi about x, which maps -y onto +y.
    y = torch.where(near_pole, -y, y)
    z = torch.where(near_pole, -z, z)
    norm = torch.sqrt(2 * (1 + y))
    w, qx, qz = norm / 2, -z / norm, x / norm
    zero = torch.zeros_like(w)
    direct = torch.stack((w, qx, zero, qz), dim=1)
    # (w, qx, 0, qz) times (0, 1, 0, 0), the turn about x.
    detour = torch.stack((-qx, w, qz, zero), dim=1)
    return torch.where(near_pole[:, None], detour, direct)


def _roll(quaternion: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Follow rotations [E, 4] by rotations about +y by angles [E], radians."""
    c, s = torch.cos(angle / 2), torch.sin(angle / 2)
    w, x, y, z = quaternion.unbind(dim=1)
    return torch.stack((c * w - s * y, c * x + s * z, c * y + s * w, c * z - s * x), dim=1)


def _rotation_to_quaternion(rotation: torch.Tensor) -> torch.Tensor:
    """Unit quaternions (w, x, y, z) of rotation matrices [E, 3, 3]."""
    xx, xy, xz, yx, yy, yz, zx, zy, zz = rotation.flatten(1).unbind(dim=1)
    # Row k is 4 q_k q; the row of the largest component is the best conditioned.
    candidates = torch.stack(
        [
            torch.stack([1 + xx + yy + zz, zy - yz, xz - zx, yx - xy], dim=1),
            torch.stack([zy - yz, 1 + xx - yy - zz, xy + yx, xz + zx], dim=1),
            torch.stack([xz - zx, xy + yx, 1 - xx + yy - zz, yz + zy], dim=1),
            torch.stack([yx - xy, xz + zx, yz + zy, 1 - xx - yy + zz], dim=1),
        ],
        dim=1,
    )
    best = candidates.diagonal(dim1=1, dim2=2).argmax(dim=1)
    chosen = candidates.take_along_dim(best.view(-1, 1, 1), dim=1).squeeze(1)
    return torch.nn.functional.normalize(chosen, dim=-1)
