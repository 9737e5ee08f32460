"""Uniformly random rotations of steerable features."""

from __future__ import annotations

import torch
from e3nn import o3

from est_ocp.errors import ConfigError
from est_ocp.sphere import ConstantBuffers


class RandomRotation(ConstantBuffers):
    """Wigner matrices of rotations drawn uniformly from SO(3).

    Turning the features by ``D(R)``, acting on the sphere and turning back by its transpose is the
    same as turning the sampling points. With a new ``R`` for every graph and step, an operation
    on finitely many points is equivariant in expectation over ``R``; the authors' implementation
    turns its points so during training. The module has no parameters.

    Parameters
    ----------
    lmax : int
        Largest degree of the features.
    """

    def __init__(self, lmax: int) -> None:
        super().__init__()
        if lmax < 0:
            raise ConfigError(f"lmax of a random rotation must be at least 0, got {lmax}")
        self.lmax = lmax
        generators = [_generators(degree) for degree in range(lmax + 1)]
        size = (lmax + 1) ** 2
        blocks = [torch.block_diag(*(g[axis] for g in generators)) for axis in range(3)]
        self.register_constant("generators", torch.stack(blocks).reshape(3, size, size))

    def forward(self, num_graphs: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw one rotation a graph.

        Parameters
        ----------
        num_graphs : int
            Number G of rotations.
        generator : torch.Generator, optional
            Source of randomness; torch's global one by default, so ``torch.manual_seed`` applies.

        Returns
        -------
        Tensor [G, (lmax+1)**2, (lmax+1)**2]
            Orthogonal matrices, float32 or float64 as the module.
        """
        quaternion = self.generators.new_empty(num_graphs, 4).normal_(generator=generator)
        return self.wigner(quaternion)

    def wigner(self, quaternion: torch.Tensor) -> torch.Tensor:
        """Wigner matrices of quaternions of any length but zero.

        A normal quaternion has a uniform direction in four dimensions, which is the uniform
        measure of rotations. The matrix is the exponential of the rotation vector's generator.

        Parameters
        ----------
        quaternion : Tensor [G, 4]
            Real part first.

        Returns
        -------
        Tensor [G, (lmax+1)**2, (lmax+1)**2]
        """
        real, imaginary = quaternion[:, :1], quaternion[:, 1:]
        length = imaginary.norm(dim=-1, keepdim=True)
        angle = 2.0 * torch.atan2(length, real)
        tiny = torch.finfo(length.dtype).tiny
        rotation_vector = angle * imaginary / length.clamp_min(tiny)
        with torch.autocast(quaternion.device.type, enabled=False):
            exponent = torch.einsum("ga,aij->gij", rotation_vector, self.generators)
            return torch.matrix_exp(exponent)

    def extra_repr(self) -> str:
        return f"lmax={self.lmax}"


def rotate(x: torch.Tensor, wigner: torch.Tensor) -> torch.Tensor:
    """Multiply features by one matrix a node, in at least float32.

    Parameters
    ----------
    x : Tensor [N, I, C]
        Steerable features.
    wigner : Tensor [N, I, I] or [1, I, I]
        One matrix a node, or one for all.

    Returns
    -------
    Tensor [N, I, C]
        In the dtype of `x`.
    """
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, wigner.dtype)
        return torch.matmul(wigner.to(dtype), x.to(dtype)).to(x.dtype)


def _generators(degree: int) -> torch.Tensor:
    """Generators [3, 2l+1, 2l+1] of rotations about x, y and z in e3nn's basis, float64."""
    # e3nn computes them in the default dtype. The squares of all entries are multiples of one
    # half; rounding them restores the float64 value from a float32 one.
    generators = o3.so3_generators(degree).to(torch.float64)
    return generators.sign() * ((2.0 * generators.square()).round() / 2.0).sqrt()
